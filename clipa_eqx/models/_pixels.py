"""Decoded pixels to what the image tower sees."""

import jax.numpy as jnp

from .._types import Pixels, RawPixels


PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images in [0, 1], red, green, blue; CLIPA-JAX normalises with it."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Standard deviation that goes with `PIXEL_MEAN`."""


def scale_pixels(pixels: RawPixels) -> Pixels:
    """Bytes as float32 in [0, 1]."""
    return pixels.astype(jnp.float32) / 255


def normalize_pixels(pixels: Pixels) -> Pixels:
    """Subtract `PIXEL_MEAN` and divide by `PIXEL_STD`, per channel.

    Args:
        pixels: an image in [0, 1].
    """
    mean, std = (jnp.asarray(values, pixels.dtype).reshape(1, 1, 3) for values in (PIXEL_MEAN, PIXEL_STD))
    return (pixels - mean) / std
