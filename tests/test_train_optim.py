"""Schedules, decay sets and AdamW against values by hand and a float64 re-derivation."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx import models
from clipa_eqx.config import CLIPConfig, OptimConfig, RateConfig, TextConfig, VisionConfig
from clipa_eqx.train import decay_mask, make_optimizer, make_schedule, rate_factors, trainable_mask


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


def _decayed_names(decay_set):
    return {name for name, decays in _named(decay_mask(_shapes(), decay_set)).items() if decays}


def test_matrices_are_the_linear_weights_alone():
    names = _decayed_names("matrices")
    block = [f"stack.blocks.{part}.weight" for part in ("attention.qkv", "attention.out", "mlp.widen", "mlp.narrow")]
    towers = {f"{tower}.{name}" for tower in ("vision", "text") for name in [*block, "projection.weight"]}
    assert names == towers | {"vision.patch.weight"}


def test_all_but_norms_adds_embeddings_and_learned_tables():
    added = _decayed_names("all_but_norms") - _decayed_names("matrices")
    assert added == {"text.embedding", "text.position", "vision.position"}


def _shapes(config=MODEL):
    return eqx.filter_eval_shape(models.make_clip, config, key=jax.random.key(0))


def _named(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def test_a_frozen_table_is_not_trained():
    config = dataclasses.replace(MODEL, vision=dataclasses.replace(MODEL.vision, position="frozen"))
    trained = _named(trainable_mask(OptimConfig(), _shapes(config)))
    assert [name for name, moves in trained.items() if not moves] == ["vision.position"]


def test_the_first_pattern_that_matches_decides():
    rates = (RateConfig("vision.stack.*.bias", 3.0), RateConfig("vision.*", 0.0), RateConfig("*.projection.*", 0.5))
    optim = OptimConfig(rates=rates)
    factors = {name: float(np.max(factor)) for name, factor in _named(rate_factors(optim, _shapes())).items()}
    assert factors["vision.stack.blocks.mlp.widen.bias"] == 3.0
    assert factors["vision.projection.weight"] == 0.0
    assert factors["text.projection.weight"] == 0.5
    assert factors["text.embedding"] == factors["logit_scale"] == 1.0
    trained = _named(trainable_mask(optim, _shapes()))
    assert {name for name in trained if not trained[name]} == {name for name in factors if not factors[name]}


def test_layer_decay_counts_as_beit_does():
    """Two blocks: embeddings are layer 0, blocks 1 and 2, what follows is layer 3 and has the whole rate."""
    optim = OptimConfig(image_layer_decay=0.5, text_layer_decay=0.1)
    factors = _named(rate_factors(optim, _shapes()))
    for name in ("vision.patch.weight", "vision.class_token", "vision.position"):
        assert factors[name] == 0.125
    for name in ("vision.norm.scale", "vision.projection.weight", "text.norm.bias", "logit_scale"):
        assert factors[name] == 1.0
    np.testing.assert_allclose(factors["vision.stack.blocks.mlp.narrow.weight"].ravel(), [0.25, 0.5])
    np.testing.assert_allclose(factors["text.stack.blocks.attention_norm.scale"].ravel(), [0.01, 0.1])
    np.testing.assert_allclose([factors["text.embedding"], factors["text.position"]], 0.001)


def test_rates_scale_whole_updates_and_frozen_arrays_store_nothing():
    rates = (RateConfig("text.*", 0.0), RateConfig("logit_scale", 2.0))
    optim = OptimConfig(warmup_first="fraction", rates=rates, image_layer_decay=0.5, weight_decay=0.3)
    plain, model = dataclasses.replace(optim, rates=(), image_layer_decay=1.0), make_clip(MODEL)

    @jax.jit
    def updates(model):
        found = []
        for config in (plain, optim):
            optimizer = make_optimizer(config, make_schedule(config, 10), model)
            with jax.numpy_dtype_promotion("standard"):
                found.append(optimizer.update(model, optimizer.init(model), model))
        return found

    (whole, _), (scaled, state) = updates(model)
    whole, scaled, factors = _named(whole), _named(scaled), _named(rate_factors(optim, model))
    assert set(scaled) == {name for name in whole if not name.startswith("text.")}
    for name, update in scaled.items():
        np.testing.assert_allclose(update, factors[name] * whole[name], rtol=1e-6)
    assert not any(".text." in name for name in _named(state))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((RateConfig("visoin.*", 0.0),), "'visoin.*', which is the name of no array; names are as vision.patch.weight"),
        ((RateConfig("*", 0.0),), "nothing would be trained"),
    ],
)
def test_rates_that_cannot_be_meant_are_named(rates, message):
    optim = OptimConfig(rates=rates)
    with pytest.raises(ValueError, match=message):
        make_optimizer(optim, make_schedule(optim, 10), _shapes())


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
