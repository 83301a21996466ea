"""A model with all that it needs to be used: its preprocessing and its tokenizer."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ..config import CLIPConfig, config_to_json, EvalConfig, load_run_config, RunConfig, StageConfig
from ..data import load_tokenizer, Tokenizer
from ..models import CLIP, load_weights, save_weights, transfer
from ._embed import embed, embed_pixels, embed_tokens
from ._inputs import ImageReader, listed, Picture, Preprocess, TextTokenizer


_DECODE_THREADS = 8


@dataclass(frozen=True)
class Pretrained:
    """A model ready to use."""

    model: CLIP
    config: CLIPConfig
    found_preprocess: Preprocess | None
    """How pictures are resized for it; None where the weights do not say."""
    found_tokenizer: Tokenizer | None
    """The tokenizer that came with the weights; None if none did, or one of a kind that this package does not read."""

    @functools.cached_property
    def preprocess(self) -> ImageReader:
        """How pictures are read for the model: call it with one.

        Raises:
            ValueError: the weights do not say how.
        """
        if self.found_preprocess is None:
            raise ValueError(
                "These weights do not say how pictures are resized for them: give "
                f"dataclasses.replace(pretrained, found_preprocess=Preprocess({self.config.vision.image_size}, RESIZE, "
                "KERNEL)), with crop or squash and bilinear or bicubic, as the model was trained."
            )
        vision = self.config.vision
        settings = {field.name: getattr(self.found_preprocess, field.name) for field in dataclasses.fields(Preprocess)}
        return ImageReader(**settings, pixel_mean=vision.pixel_mean, pixel_std=vision.pixel_std)

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer: call it with texts.

        Raises:
            ValueError: the weights came without one.
        """
        if self.found_tokenizer is None:
            raise ValueError(
                "These weights came without a tokenizer that this package reads: put its vocab.txt, tokenizer.json, "
                "spiece.model, or vocab.json and merges.txt beside them, or give dataclasses.replace(pretrained, "
                "found_tokenizer=load_tokenizer(PATH))."
            )
        settings = {field.name: getattr(self.found_tokenizer, field.name) for field in dataclasses.fields(Tokenizer)}
        return TextTokenizer(**settings, context_length=self.config.text.context_length)

    def embed_images(
        self, images: Picture | Iterable[Picture], *, batch_size: int = 64
    ) -> Float32[np.ndarray, "images embed"]:
        """Embed pictures, in order, as unit vectors. One that cannot be read is an error.

        Files are decoded in threads while the device embeds the batch before. `evaluation.embed_images` spreads a set
        over devices and processes, and reports what cannot be read.

        Args:
            images: one picture, which makes one row, or several; an iterator is read batch by batch.
            batch_size: most at once, at least 1; one function is compiled for all batches.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: there is no picture, one cannot be used, or the weights do not say how pictures are resized.
        """
        decode = self.preprocess.decode
        with ThreadPoolExecutor(_DECODE_THREADS) as threads:
            read = lambda rows: np.stack(list(threads.map(decode, rows)))
            return embed(embed_pixels, self.model, read, listed(images), batch_size)

    def embed_texts(self, texts: str | Iterable[str], *, batch_size: int = 256) -> Float32[np.ndarray, "texts embed"]:
        """Embed texts, in order, as unit vectors.

        Args:
            texts: one text, which makes one row, or several; an iterator is read batch by batch.
            batch_size: most at once, at least 1; one function is compiled for all batches.

        Raises:
            ValueError: there is no text, or the weights came without a tokenizer.
        """
        return embed(embed_tokens, self.model, self.tokenizer, listed(texts), batch_size)


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
    preprocess = pretrained.found_preprocess
    if preprocess is not None:
        preprocess = dataclasses.replace(preprocess, image_size=vision.image_size)
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
