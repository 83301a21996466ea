"""Bounds of the temperature."""

import math

import jax.numpy as jnp

from .._checks import check_at_least
from .._types import Scalar


def clamp_logit_scale(logit_scale: Scalar, maximum: float) -> Scalar:
    """The logit scale after an update, moved back to where the inverse temperature lies in 1 to `maximum`.

    CLIP and open_clip do so with 100 after every step; CLIPA-JAX leaves it free.

    Args:
        logit_scale: natural logarithm of the inverse temperature.
        maximum: largest inverse temperature, at least 1.

    Returns:
        The logit scale in 0 to ln(maximum).

    Raises:
        ValueError: a maximum below 1.
    """
    check_at_least("largest inverse temperature", maximum, 1.0)
    return jnp.clip(logit_scale, 0, math.log(maximum))
