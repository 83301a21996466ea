"""A model with all that it needs to be used: its preprocessing and its tokenizer."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

from ..config import (
    CLIPConfig,
    config_to_json,
    EvalConfig,
    EvalResize,
    Interpolation,
    load_run_config,
    RunConfig,
    StageConfig,
)
from ..data import load_tokenizer, Tokenizer
from ..models import CLIP, load_weights, save_weights


if TYPE_CHECKING:
    from ._open_clip_config import Numerics

_HUB_PREFIX = "hf-hub:"
_HUB_TEXTS = ["*.json", "*.txt", "*.txt.gz"]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the model's input, but for the pixel statistics, which are the image tower's own."""

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
    found_tokenizer: Tokenizer | None
    """The tokenizer that came with the weights; None if none did, or one of a kind that this package does not read."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: the weights came without one.
        """
        if self.found_tokenizer is None:
            raise ValueError(
                "These weights came without a tokenizer that this package reads: put its vocab.txt, tokenizer.json, or "
                "vocab.json and merges.txt beside them, or use load_tokenizer."
            )
        return self.found_tokenizer


def load_pretrained(path: Path | str, *, numerics: "Numerics" = "open_clip") -> Pretrained:
    """Load a model from what a directory holds: a finished run, an open_clip model, or a Hugging Face model.

    Args:
        path: the directory, or `hf-hub:org/name` for one of the hub's, which needs the extra `hub`.
        numerics: for open_clip directories: `open_clip` computes as open_clip does, `as_trained` as CLIPA's and
            SigLIP's own code did (tanh GELU, epsilon 1e-6, CLIPA's tokens).

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is damaged, does not fit the others, or describes a model that this package lacks.
        ImportError: an extra is needed and not installed.
    """
    name = str(path)
    root = _download(name.removeprefix(_HUB_PREFIX)) if name.startswith(_HUB_PREFIX) else Path(path)
    # These two need this module's classes.
    from ._hugging_face import is_hugging_face, load_hugging_face
    from ._open_clip import CONFIG_FILE, load_open_clip

    if (root / CONFIG_FILE).is_file():
        return load_open_clip(root, numerics=numerics)
    if is_hugging_face(root):
        return load_hugging_face(root)
    return _load_run(root)


def save_pretrained(pretrained: Pretrained, directory: Path | str) -> None:
    """Write a model in the form of a finished run, which `load_pretrained` and `clipa evaluate` read.

    Args:
        pretrained: the model with its preprocessing and, if it has one, its tokenizer.
        directory: where to write; files of the same names are replaced.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    config = pretrained.config
    stage = StageConfig(
        image_size=config.vision.image_size,
        text_length=config.text.context_length,
        loss="softmax" if config.init_logit_bias is None else "sigmoid",
    )
    protocol = EvalConfig(resize=pretrained.preprocess.resize, interpolation=pretrained.preprocess.interpolation)
    run = RunConfig(model=config, stages=(stage,), evaluation=protocol, recipe="imported")
    save_weights(pretrained.model, root / "model.safetensors")
    if pretrained.found_tokenizer is not None:
        pretrained.found_tokenizer.save(root / "tokenizer")
    (root / "config.json").write_text(json.dumps(config_to_json(run), indent=2) + "\n", encoding="utf-8")


def _load_run(root: Path) -> Pretrained:
    if not (root / "config.json").is_file():
        raise FileNotFoundError(
            f"{root} is not a run directory: it has no config.json. Nor is it one of open_clip's, with an "
            "open_clip_config.json."
        )
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
    tokenizer = load_tokenizer(root / "tokenizer") if (root / "tokenizer").is_dir() else None
    return Pretrained(model, model.config, preprocess, tokenizer)


def _download(name: str) -> Path:
    """Fetch a model of the hub: its small files and one form of its weights."""
    hub = _hub()
    from ._open_clip import WEIGHT_FILES

    safe = [file for file in WEIGHT_FILES if file.endswith(".safetensors")]
    root = Path(hub.snapshot_download(name, allow_patterns=[*_HUB_TEXTS, *safe]))
    if not any((root / file).is_file() for file in safe):
        root = Path(hub.snapshot_download(name, allow_patterns=[*_HUB_TEXTS, *WEIGHT_FILES]))
    return root


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("Names of the hub need huggingface_hub: pip install 'clipa_eqx[hub]'.") from error
