"""The cases that are measured on a GPU, and their tiny likenesses for a rehearsal."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


sys.path.append(str(Path(__file__).parents[1]))

from _sizes import Case, model_config, random_batch  # noqa: E402

from clipa_eqx.config import CLIPConfig, DataConfig, OptimConfig, RunConfig, StageConfig  # noqa: E402


CASES = {
    "b16": (Case("clipa-b16", 112, 32), 1024),
    "l16": (Case("clipa-l16", 96, 8), 1024),
    "h14": (Case("clipa-h14", 84, 8), 512),
    "b16_224": (Case("clipa-b16", 224, 32), 1024),
}
"""A model at an image size and a text length, and the pairs of a step."""
TINY_ROWS = 16


class Sized(NamedTuple):
    """A case as it is run."""

    case: Case
    batch: int
    run: RunConfig
    stage: StageConfig

    def pairs(self) -> dict[str, np.ndarray]:
        """Random pixels, ids and word classes of one step."""
        return random_batch(self.case, self.batch)


def sized(options: dict[str, Any]) -> Sized:
    """The run and the stage that the options of a part name.

    Args:
        options: `case`; `batch` in its place; `run`, `stage`, `optim`: fields to replace; `tiny`: rehearse.
    """
    case, batch = CASES[options["case"]]
    batch = options.get("batch", batch)
    stage = {"compute_dtype": "bfloat16"} | options.get("stage", {})
    config = model_config(case)
    if options.get("tiny"):
        case, batch, config, stage = _tiny(case, batch, config, stage)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=10, **options.get("optim", {}))
    whole = StageConfig(
        samples=batch * 100_000,  # Of the published length, by which `layers=auto` chooses.
        batch_size=batch,
        image_size=case.image_size,
        text_length=case.text_length,
        optim=optim,
        **stage,
    )
    run = RunConfig(
        model=config, stages=(whole,), data=DataConfig(caption_tokens=case.text_length), **options.get("run", {})
    )
    return Sized(case, batch, run, whole)


def _tiny(
    case: Case, batch: int, config: CLIPConfig, stage: dict[str, Any]
) -> tuple[Case, int, CLIPConfig, dict[str, Any]]:
    """The same fields at sizes that a CPU takes in a moment: counts of rows shrink together."""
    share = batch // TINY_ROWS
    side = 2 * config.vision.patch_size
    small: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "hidden": 64}
    config = dataclasses.replace(
        config,
        embed=16,
        vision=dataclasses.replace(config.vision, image_size=side, **small),
        text=dataclasses.replace(config.text, **small),
    )
    counts = {name: max(1, stage[name] // share) for name in ("micro_batch", "loss_tile") if name in stage}
    return case._replace(image_size=side), TINY_ROWS, config, stage | counts
