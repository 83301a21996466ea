"""Image position tables that are stored in one project and computed in another."""

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Array

from ..config import VisionPosition
from ..models import CLIP, transfer


def with_position(model: CLIP, position: VisionPosition) -> CLIP:
    """The same model with its image positions in another form, on the same grid."""
    vision = dataclasses.replace(model.config.vision, position=position)
    return transfer(model, dataclasses.replace(model.config, vision=vision))


def with_formula_where_equal(model: CLIP) -> CLIP:
    """A model with a frozen table, computing it instead if a formula gives the same numbers in every bit."""
    formulas: tuple[VisionPosition, ...] = ("sincos2d", "sincos2d_mae")
    for formula in formulas:
        computed = with_position(model, formula)
        table = with_position(computed, "frozen").vision.position
        if np.array_equal(cast(Array, table), cast(Array, model.vision.position)):
            return computed
    return model
