"""A model with all that it needs to be used: its preprocessing and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from ..config import CLIPConfig, EvalResize, Interpolation, load_run_config
from ..data import load_tokenizer, Tokenizer
from ..models import CLIP, load_weights


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the model's input."""

    image_size: int
    """Side in pixels."""
    resize: EvalResize
    """crop: shortest side, then centre square. squash: both sides, aspect ignored."""
    interpolation: Interpolation
    """Kernel of the antialiased resize."""


@dataclass(frozen=True)
class Pretrained:
    """A model ready to use."""

    model: CLIP
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: Tokenizer


def load_pretrained(path: Path | str) -> Pretrained:
    """Load a model from the directory of a finished run.

    Args:
        path: directory with `config.json`, `model.safetensors` and `tokenizer/`, as training leaves it.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is damaged, or does not fit the others.
    """
    root = Path(path)
    if not (root / "config.json").is_file():
        raise FileNotFoundError(f"{root} is not a run directory: it has no config.json.")
    if not (root / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{root} has no model.safetensors: its run has not finished. Start the same `clipa train` again."
        )
    run = load_run_config(root / "config.json")
    model = load_weights(root / "model.safetensors")
    preprocess = Preprocess(
        image_size=model.config.vision.image_size,
        resize=run.evaluation.resize,
        interpolation=run.evaluation.interpolation,
    )
    return Pretrained(model, model.config, preprocess, load_tokenizer(root / "tokenizer"))
