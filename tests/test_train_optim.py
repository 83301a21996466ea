"""Schedules, decay sets and AdamW against values by hand and a float64 re-derivation."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx import models
from clipa_eqx.config import CLIPConfig, OptimConfig, TextConfig, VisionConfig
from clipa_eqx.train import decay_mask, make_optimizer, make_schedule


MODEL = CLIPConfig(
    embed=8,
    vision=VisionConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, hidden=16, position="learned"),
    text=TextConfig(context_length=4, vocab_size=11, width=8, depth=2, heads=2, hidden=16),
)


def make_clip(config):
    return eqx.filter_jit(models.make_clip)(config, key=jax.random.key(0))


def _rates(optim, steps):
    return np.array(jax.vmap(make_schedule(optim, steps))(jnp.arange(steps + 1)))


def test_cosine_begins_at_zero_and_ends_at_zero():
    rates = _rates(OptimConfig(learning_rate=2.0, warmup_steps=4, schedule="cosine"), 12)
    np.testing.assert_allclose(rates[:5], [0.0, 0.5, 1.0, 1.5, 2.0], atol=1e-6)
    np.testing.assert_allclose(rates[8], 1.0, atol=1e-6)  # half-way between 4 and 12
    np.testing.assert_allclose(rates[12], 0.0, atol=1e-6)


def test_warmup_by_fraction_never_gives_zero():
    rates = _rates(OptimConfig(learning_rate=2.0, warmup_steps=4, warmup_first="fraction", schedule="constant"), 8)
    np.testing.assert_allclose(rates[:6], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0], atol=1e-6)


def test_constant_cools_down_to_zero():
    rates = _rates(OptimConfig(learning_rate=1.0, schedule="constant", cooldown_steps=4), 10)
    np.testing.assert_allclose(rates[[0, 6, 7, 9, 10]], [1.0, 1.0, 0.75, 0.25, 0.0], atol=1e-6)


def test_reciprocal_square_root_halves_after_three_timescales():
    optim = OptimConfig(learning_rate=1.0, schedule="rsqrt", rsqrt_timescale=10, warmup_steps=5, cooldown_steps=10)
    rates = _rates(optim, 100)
    np.testing.assert_allclose(rates[[5, 35, 85]], [1.0, 0.5, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(rates[100], 0.0, atol=1e-6)


@pytest.mark.parametrize("warmup_first", ["zero", "fraction"])
def test_the_rate_never_jumps_up_at_the_end_of_warmup(warmup_first):
    for schedule in ("cosine", "constant", "rsqrt"):
        optim = OptimConfig(learning_rate=1.0, warmup_steps=7, warmup_first=warmup_first, schedule=schedule)
        assert np.abs(np.diff(_rates(optim, 50))).max() <= 1 / 7 + 1e-6


def _decayed_names(model, decay_set):
    flat = jax.tree_util.tree_leaves_with_path(decay_mask(model, decay_set))
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, decays in flat if decays}


def test_matrices_are_the_linear_weights_alone():
    model = make_clip(MODEL)
    names = _decayed_names(model, "matrices")
    block = [f"stack.blocks.{part}.weight" for part in ("attention.qkv", "attention.out", "mlp.widen", "mlp.narrow")]
    towers = {f"{tower}.{name}" for tower in ("vision", "text") for name in [*block, "projection.weight"]}
    assert names == towers | {"vision.patch.weight"}


def test_all_but_norms_adds_embeddings_and_learned_tables():
    model = make_clip(MODEL)
    added = _decayed_names(model, "all_but_norms") - _decayed_names(model, "matrices")
    assert added == {"text.embedding", "text.position", "vision.position"}


def test_a_frozen_table_never_moves():
    config = dataclasses.replace(MODEL, vision=dataclasses.replace(MODEL.vision, position="frozen"))
    model = make_clip(config)
    assert "vision.position" not in _decayed_names(model, "all_but_norms")


def test_adamw_equals_its_formula_in_float64():
    """Two updates: clip by global norm, bias-corrected moments, decay times rate on the decay set only."""
    optim = OptimConfig(
        learning_rate=0.1, warmup_first="fraction", schedule="constant", weight_decay=0.2, clip_norm=1.0, eps=1e-8
    )
    model = make_clip(MODEL)
    optimizer = make_optimizer(optim, make_schedule(optim, 10), model)
    grads = [
        jax.tree.map(lambda x, s=s: jnp.cos(s + x + jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)), model)
        for s in (0.0, 1.0)
    ]

    @jax.jit
    def updated(model):
        state = optimizer.init(model)
        for grad in grads:
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(grad, state, model)
            model = eqx.apply_updates(model, updates)
        return model

    got = updated(model)
    norms = [math.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(grad))) for grad in grads]
    mask = jax.tree.leaves(decay_mask(model, optim.decay_set))
    leaves = zip(jax.tree.leaves(model), *map(jax.tree.leaves, grads), mask, jax.tree.leaves(got), strict=True)
    for start, first, second, decays, result in leaves:
        x, mean, square = np.float64(start), 0.0, 0.0
        for count, (grad, norm) in enumerate(zip((first, second), norms, strict=True), start=1):
            g = np.float64(grad) / max(norm, 1.0)
            mean, square = 0.9 * mean + 0.1 * g, 0.95 * square + 0.05 * g * g
            step = (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.95**count)) + 1e-8)
            x = x - 0.1 * (step + (0.2 * x if decays else 0.0))
        np.testing.assert_allclose(result, x, rtol=2e-5, atol=2e-6)


def test_first_moment_is_stored_in_bfloat16_when_asked():
    optim = OptimConfig(moment_dtype="bfloat16")
    model = make_clip(MODEL)
    state = make_optimizer(optim, make_schedule(optim, 10), model).init(model)
    types = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert jnp.dtype("bfloat16") in types
