"""A recipe made smaller."""

import dataclasses
import math
from fractions import Fraction

from .._checks import check_between
from ..config import StageConfig
from ._recipe import Recipe


_BATCH_UNIT = 64
"""Scaled batches are multiples of this, so that they split over any usual number of devices."""


def scale_recipe(recipe: Recipe, factor: Fraction | float) -> Recipe:
    """Shrink every stage of a recipe to `factor` times its samples, and all that depends on them with it.

    - samples: times `factor`.
    - batch: times the square root of `factor`, as between the recipes themselves (CLIPA-v2 has 5 times the samples and
      2 times the batch of CLIPA); rounded to a multiple of 64, at least 64 unless the recipe's own is smaller.
    - learning rate: linear in the batch, the rule of every CLIPA config.
    - warmup and cooldown: the same share of the steps, which shrink by the square root of `factor` too.

    So at 1/256 a batch of 65536 becomes 4096, and 195490 steps become 12219. Model, tokens and reductions stay.
    Published scores and hours are dropped: they belong to the full recipe.

    Args:
        recipe: the recipe.
        factor: above 0, at most 1; 1 gives the recipe back.

    Raises:
        ValueError: `factor` is out of range.
    """
    check_between("factor", float(factor), 0.0, 1.0, low_open=True)
    if factor == 1:
        return recipe
    share = Fraction(factor)
    return dataclasses.replace(
        recipe,
        stages=tuple(_scale_stage(stage, share) for stage in recipe.stages),
        notes=(*recipe.notes, f"Scaled to {share.limit_denominator(10**6)} of its samples."),
        published=(),
        published_hours=(),
    )


def _scale_stage(stage: StageConfig, factor: Fraction) -> StageConfig:
    batch_size = round(stage.batch_size * math.sqrt(factor) / _BATCH_UNIT) * _BATCH_UNIT
    batch_size = min(max(batch_size, _BATCH_UNIT), stage.batch_size)
    samples = max(round(stage.samples * factor), batch_size)
    shrink = Fraction(-(-samples // batch_size), stage.steps)
    optim = dataclasses.replace(
        stage.optim,
        learning_rate=stage.optim.learning_rate * batch_size / stage.batch_size,
        warmup_steps=_shrink_steps(stage.optim.warmup_steps, shrink),
        cooldown_steps=_shrink_steps(stage.optim.cooldown_steps, shrink),
    )
    # Rounding up a short warmup must not use up a short stage.
    least_steps = optim.warmup_steps + optim.cooldown_steps + 1
    return dataclasses.replace(
        stage, batch_size=batch_size, samples=max(samples, least_steps * batch_size), optim=optim
    )


def _shrink_steps(steps: int, factor: Fraction) -> int:
    return max(round(steps * factor), 1) if steps else 0
