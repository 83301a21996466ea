"""What moves, and how, between image sizes and context lengths."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.models import make_clip, transfer
from clipa_eqx.nn import sincos_2d


SMALL = CLIPConfig(
    6,
    VisionConfig(image_size=24, patch_size=8, width=8, depth=1, heads=2, hidden=8),
    TextConfig(context_length=4, vocab_size=12, width=8, depth=1, heads=2, hidden=8),
)


def filled(config):
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def vision(config, **fields):
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **fields))


def text(config, **fields):
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **fields))


def keys_kernel(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def stretch(rows, new, kernel, support):
    """Weights of a half-pixel resize, one axis, widened where the axis shrinks and renormalised at the ends."""
    old = len(rows)
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.array([[kernel((centre - at) / scale) for at in range(old)] for centre in centres])
    assert support * scale < 2 * old + 4
    return weights / weights.sum(1, keepdims=True) @ rows


def bicubic(table, old, new):
    grid = table.reshape(old, old, -1)
    grid = stretch(grid.reshape(old, -1), new, keys_kernel, 2).reshape(new, old, -1).transpose(1, 0, 2)
    return (
        stretch(grid.reshape(old, -1), new, keys_kernel, 2).reshape(new, new, -1).transpose(1, 0, 2).reshape(new**2, -1)
    )


def test_only_tables_change():
    model = filled(SMALL)
    moved = transfer(model, text(vision(SMALL, image_size=40), context_length=7))
    assert moved.vision.position is None
    assert moved.config == text(vision(SMALL, image_size=40), context_length=7)
    assert (moved.vision.config, moved.text.config) == (moved.config.vision, moved.config.text)
    back = eqx.tree_at(lambda clip: clip.text.position, moved, model.text.position)
    for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True):
        assert one is two


@pytest.mark.parametrize("length", [9, 2])
def test_learned_text_positions_are_stretched_linearly_from_half_pixel_to_half_pixel(length):
    model = filled(SMALL)
    moved = transfer(model, text(SMALL, context_length=length))
    expected = stretch(np.asarray(model.text.position), length, lambda x: max(0.0, 1 - abs(x)), 1)
    np.testing.assert_allclose(moved.text.position, expected, atol=1e-5)
    assert moved.encode_text(jnp.arange(length)).shape == (6,)


@pytest.mark.parametrize("size", [56, 16])
def test_resample_stores_the_earlier_computed_table_stretched(size):
    config = vision(SMALL, image_size=size)
    moved = transfer(filled(SMALL), config, image_positions="resample")
    assert moved.config.vision.position == moved.vision.config.position == "frozen"
    np.testing.assert_allclose(moved.vision.position, bicubic(sincos_2d((3, 3), 8), 3, size // 8), atol=1e-5)
    again = transfer(moved, config, image_positions="resample")
    np.testing.assert_array_equal(again.vision.position, moved.vision.position)
    assert transfer(moved, config).vision.position is None
    assert transfer(filled(SMALL), SMALL, image_positions="resample").config == SMALL


def test_a_computed_table_may_become_a_learned_one():
    config = vision(SMALL, image_size=40, position="learned")
    stretched = transfer(filled(SMALL), config, image_positions="resample")
    remade = transfer(filled(SMALL), config, image_positions="remake")
    assert stretched.config == remade.config == config
    np.testing.assert_allclose(stretched.vision.position, bicubic(sincos_2d((3, 3), 8), 3, 5), atol=1e-5)
    np.testing.assert_allclose(remade.vision.position, sincos_2d((5, 5), 8), atol=1e-6)


def test_a_learned_table_is_stretched_whatever_is_asked():
    learned = vision(SMALL, position="learned")
    model = filled(learned)
    expected = bicubic(np.asarray(model.vision.position), 3, 5)
    for how in ("remake", "resample"):
        moved = transfer(model, vision(learned, image_size=40), image_positions=how)
        np.testing.assert_allclose(moved.vision.position, expected, atol=1e-5)


def test_transfer_refuses_what_it_cannot_move():
    model = filled(SMALL)
    with pytest.raises(ValueError, match=r"vision.depth \(1 -> 2\), text.pool \(last -> mean_real\)"):
        transfer(model, text(vision(SMALL, depth=2), pool="mean_real"))
    with pytest.raises(ValueError, match="'sincos2d', whose table differs from that of 'sincos2d_mae'"):
        transfer(model, vision(SMALL, position="sincos2d_mae"))
    with pytest.raises(ValueError, match="would discard the learned image positions"):
        transfer(filled(vision(SMALL, position="learned")), SMALL)
