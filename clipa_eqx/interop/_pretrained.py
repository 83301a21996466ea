"""A model with all that it needs to be used: its preprocessing and its tokenizer."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

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
from ..models import CLIP, load_weights, save_weights, transfer


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
                "These weights came without a tokenizer that this package reads: put its vocab.txt, tokenizer.json, "
                "spiece.model, or vocab.json and merges.txt beside them, or use load_tokenizer."
            )
        return self.found_tokenizer


def move_pretrained(
    pretrained: Pretrained, *, image_size: int | None = None, context_length: int | None = None
) -> Pretrained:
    """The same model at another image size or context length, its positions resampled from those that it has.

    Args:
        pretrained: the model.
        image_size: side in pixels, a multiple of the patch; none: as it is.
        context_length: tokens of a text, at least 1; none: as it is.

    Raises:
        ValueError: the model cannot have that size.
    """
    vision, text = pretrained.config.vision, pretrained.config.text
    vision = dataclasses.replace(vision, image_size=vision.image_size if image_size is None else image_size)
    text = dataclasses.replace(text, context_length=text.context_length if context_length is None else context_length)
    config = dataclasses.replace(pretrained.config, vision=vision, text=text)
    if config == pretrained.config:
        return pretrained
    model = transfer(pretrained.model, config, image_positions="resample")
    preprocess = dataclasses.replace(pretrained.preprocess, image_size=vision.image_size)
    return Pretrained(model, model.config, preprocess, pretrained.found_tokenizer)


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


def load_run(root: Path, *, ema: bool = False) -> Pretrained:
    """Load the model of a finished run.

    Args:
        root: its directory.
        ema: load the averaged weights instead of the last ones.

    Raises:
        FileNotFoundError: a file is missing; most often the run has not finished.
        ValueError: a file is damaged, or does not fit the others.
    """
    if not (root / "config.json").is_file():
        raise FileNotFoundError(
            f"{root} is not a run directory: it has no config.json. Nor is it one of open_clip's, with an "
            "open_clip_config.json."
        )
    if not (root / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{root} has no model.safetensors: its run has not finished. Start the same `clipa train` again."
        )
    weights = root / ("model-ema.safetensors" if ema else "model.safetensors")
    if not weights.is_file():
        raise FileNotFoundError(f"{root} has no {weights.name}: its last stage kept no average (ema_decay=0).")
    run = load_run_config(root / "config.json")
    model = load_weights(weights)
    preprocess = Preprocess(
        image_size=model.config.vision.image_size,
        resize=run.evaluation.resize,
        interpolation=run.evaluation.interpolation,
    )
    tokenizer = load_tokenizer(root / "tokenizer") if (root / "tokenizer").is_dir() else None
    return Pretrained(model, model.config, preprocess, tokenizer)
