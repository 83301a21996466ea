"""Decoded pixels to what the image tower sees."""

import jax.numpy as jnp

from .._types import Pixels, RawPixels
from ..config import VisionConfig


def scale_pixels(pixels: RawPixels) -> Pixels:
    """Bytes as float32 in [0, 1]."""
    return pixels.astype(jnp.float32) / 255


def normalize_pixels(pixels: Pixels, config: VisionConfig) -> Pixels:
    """Subtract the model's `pixel_mean` and divide by its `pixel_std`, per channel.

    Args:
        pixels: an image in [0, 1].
        config: the image tower that is to see it.
    """
    mean, std = (jnp.asarray(value, pixels.dtype)[None, None] for value in (config.pixel_mean, config.pixel_std))
    return (pixels - mean) / std
