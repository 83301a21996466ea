"""Colour augmentation of one image on the device, inside the jitted step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._types import Key, Pixels, Scalar
from ..config import AugmentConfig


# Luma weights of ITU-R BT.601, which TensorFlow's and Pillow's gray conversions use too.
_LUMA = (0.2989, 0.5870, 0.1140)


def jitter_order(key: Key) -> Int[Array, " 4"]:
    """A random order of brightness, contrast, saturation and hue.

    One order serves a whole batch: an order that is not batched keeps the four operations real branches under
    `jax.vmap`, so each runs once per image instead of once per image and place.
    """
    return jax.random.permutation(key, 4)


def augment_colors(pixels: Pixels, augment: AugmentConfig, order: Int[Array, " 4"], *, key: Key) -> Pixels:
    """Colour jitter, then gray, each with its own chance, as SimCLR's augmentation (Chen et al., arXiv 2002.05709).

    CLIPA's "jitter 0.4" runs are strength 0.4 with chance 0.8, gray chance 0.2. Factors are drawn uniformly from
    1 +- 0.8 strength, the hue shift from +- 0.2 strength of a turn; each operation clips to [0, 1].

    Args:
        pixels: one image in [0, 1].
        augment: strengths and chances.
        order: from [`jitter_order`][clipa_eqx.train.jitter_order].
        key: decides everything but the order.
    """
    use_key, factor_key, gray_key = jax.random.split(key, 3)
    draws = jax.random.uniform(factor_key, (4,), minval=-1.0, maxval=1.0)

    jittered = pixels
    for place in range(4):
        jittered = jax.lax.switch(
            order[place],
            (
                lambda image: jnp.clip(image * (1 + 0.8 * augment.jitter * draws[0]), 0, 1),
                lambda image: _contrast(image, 1 + 0.8 * augment.jitter * draws[1]),
                lambda image: _saturation(image, 1 + 0.8 * augment.jitter * draws[2]),
                lambda image: _hue(image, 0.2 * augment.jitter * draws[3]),
            ),
            jittered,
        )
    pixels = jnp.where(jax.random.bernoulli(use_key, augment.jitter_chance), jittered, pixels)
    gray = jnp.broadcast_to(pixels @ jnp.array(_LUMA, pixels.dtype)[:, None], pixels.shape)
    return jnp.where(jax.random.bernoulli(gray_key, augment.gray_chance), gray, pixels)


def _contrast(pixels: Pixels, factor: Scalar) -> Pixels:
    mean = jnp.mean(pixels, axis=(0, 1), keepdims=True)
    return jnp.clip((pixels - mean) * factor + mean, 0, 1)


def _saturation(pixels: Pixels, factor: Scalar) -> Pixels:
    """Scale the S of HSV: colours move away from or towards the value (their largest channel)."""
    value = jnp.max(pixels, axis=-1, keepdims=True)
    chroma = value - jnp.min(pixels, axis=-1, keepdims=True)
    saturation = chroma / jnp.maximum(value, 1e-6)
    scale = jnp.minimum(saturation * factor, 1) / jnp.maximum(saturation, 1e-6)
    return jnp.clip(value - (value - pixels) * scale, 0, 1)


def _hue(pixels: Pixels, turn: Scalar) -> Pixels:
    """Add `turn` to the H of HSV, value and chroma unchanged."""
    value = jnp.max(pixels, axis=-1)
    chroma = value - jnp.min(pixels, axis=-1)
    hue = (_hue_of(pixels, value, chroma) + turn) % 1.0
    # f(n) = V - C max(0, min(k, 4 - k, 1)) with k = (n + 6 H) mod 6; R, G, B are n = 5, 3, 1.
    sector = (jnp.array((5.0, 3.0, 1.0), pixels.dtype)[None, None] + 6.0 * hue[..., None]) % 6.0
    weight = jnp.clip(jnp.minimum(sector, 4.0 - sector), 0.0, 1.0)
    return value[..., None] - chroma[..., None] * weight


def _hue_of(
    pixels: Pixels, value: Float[Array, "height width"], chroma: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    safe = jnp.maximum(chroma, 1e-6)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    return (sixths / 6.0) % 1.0
