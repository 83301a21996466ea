"""Models and stages that several benchmarks measure, and one batch of random pairs for them."""

import dataclasses
from typing import NamedTuple

import numpy as np

from clipa_eqx.config import CLIPConfig, FloatType, OptimConfig, StageConfig
from clipa_eqx.models import presets


class Case(NamedTuple):
    """A model at an image size and a text length."""

    preset: str
    image_size: int
    text_length: int
    keep_patches: int = 0


CASES = {
    "s16": Case("clipa-s16", 64, 8),
    "b16": Case("clipa-b16", 112, 16),
    "l16": Case("clipa-l16", 96, 8),
    "h14": Case("clipa-h14", 84, 8),
}
"""L/16 sees 36 patches and H/14 36, each beside a class token; S/16 16, B/16 49."""


def model_config(case: Case) -> CLIPConfig:
    """The model, with position tables of the case's sizes."""
    config = presets[case.preset]
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=case.image_size),
        text=dataclasses.replace(config.text, context_length=case.text_length),
    )


def stage_config(case: Case, batch: int, dtype: FloatType) -> StageConfig:
    """A stage of AdamW with the numbers of CLIPA's recipes."""
    return StageConfig(
        samples=batch * 1000,
        batch_size=batch,
        image_size=case.image_size,
        image_reduction="random" if case.keep_patches else "none",
        keep_patches=case.keep_patches,
        text_length=case.text_length,
        compute_dtype=dtype,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=10, weight_decay=0.2, moment_dtype=dtype),
    )


def random_batch(case: Case, batch: int) -> dict[str, np.ndarray]:
    """Pixels, token ids and word classes of one host batch."""
    rng = np.random.default_rng(0)
    side, length = case.image_size, case.text_length
    return {
        "pixels": rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8),
        "tokens": rng.integers(1, 30000, (batch, length)).astype(np.int32),
        "word_class": rng.integers(0, 4, (batch, length)).astype(np.uint8),
    }
