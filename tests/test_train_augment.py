"""Colour augmentation against the standard library's HSV, and its chances."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np

from clipa_eqx.config import AugmentConfig
from clipa_eqx.train import augment_colors, jitter_order
from clipa_eqx.train._augment import _contrast, _hue, _saturation


IMAGE = np.random.default_rng(0).uniform(size=(6, 5, 3)).astype(np.float32)


def _by_hsv(change):
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in IMAGE.reshape(-1, 3).tolist()]
    return np.array(pixels).reshape(IMAGE.shape)


def test_hue_turns_the_colour_wheel():
    got = _hue(jnp.asarray(IMAGE), jnp.float32(0.2))
    np.testing.assert_allclose(got, _by_hsv(lambda h, s, v: ((h + 0.2) % 1, s, v)), atol=1e-5)


def test_saturation_scales_s_of_hsv():
    got = _saturation(jnp.asarray(IMAGE), jnp.float32(1.3))
    np.testing.assert_allclose(got, _by_hsv(lambda h, s, v: (h, min(1.3 * s, 1), v)), atol=1e-5)


def test_gray_and_black_pixels_stay_as_they_are():
    flat = jnp.broadcast_to(jnp.array([0.0, 0.5, 1.0], jnp.float32)[:, None, None], (3, 2, 3))
    np.testing.assert_allclose(_hue(flat, jnp.float32(0.1)), flat, atol=1e-6)
    np.testing.assert_allclose(_saturation(flat, jnp.float32(1.3)), flat, atol=1e-6)


def test_contrast_moves_away_from_the_mean_of_each_channel():
    got = _contrast(jnp.asarray(IMAGE), jnp.float32(0.5))
    mean = IMAGE.mean(axis=(0, 1), keepdims=True)
    np.testing.assert_allclose(got, mean + 0.5 * (IMAGE - mean), atol=1e-6)


def _augmented(augment, count=200):
    keys = jax.random.split(jax.random.key(0), count)
    order = jitter_order(jax.random.key(1))
    return np.array(jax.jit(jax.vmap(lambda key: augment_colors(jnp.asarray(IMAGE), augment, order, key=key)))(keys))


def test_chances_of_jitter_and_gray():
    images = _augmented(AugmentConfig(jitter=0.4, jitter_chance=0.5, gray_chance=0.2), count=1000)
    gray = np.ptp(images, axis=-1).max(axis=(1, 2)) < 1e-6
    same = np.abs(images - IMAGE).max(axis=(1, 2, 3)) < 1e-6
    # Four standard deviations of a binomial share.
    assert abs(gray.mean() - 0.2) < 4 * (0.2 * 0.8 / 1000) ** 0.5
    assert abs(same.mean() - 0.5 * 0.8) < 4 * (0.4 * 0.6 / 1000) ** 0.5
    assert images.min() >= 0
    assert images.max() <= 1


def test_images_of_one_batch_are_jittered_differently():
    images = _augmented(AugmentConfig(jitter=0.4, jitter_chance=1.0, gray_chance=0.0), count=20)
    distance = np.abs(images[:, None] - images[None]).max(axis=(2, 3, 4))
    assert (distance + np.eye(20)).min() > 1e-3


def test_gray_is_luma():
    image = _augmented(AugmentConfig(jitter=0.1, jitter_chance=0.0, gray_chance=1.0), count=1)[0]
    expected = np.repeat((IMAGE @ np.array([0.2989, 0.5870, 0.1140], np.float32))[..., None], 3, axis=-1)
    np.testing.assert_allclose(image, expected, atol=1e-6)
