"""Schedules, decay sets and AdamW against values by hand and a float64 re-derivation."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipa_eqx import models
from clipa_eqx.config import ArgumentConfig, CLIPConfig, OptimConfig, RateConfig, TextConfig, VisionConfig
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


def _gradients(model, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), model)


def _followed(optimizer, model, steps=10):
    """The weights after some updates along given gradients."""
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state, grads):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    for seed in range(steps):
        model, state = step(model, state, _gradients(model, seed))
    return model


def _optax_own(name):
    """Each optimiser as optax, or for Adafactor big_vision, writes it down, over the same model."""
    if name == "lion":
        return optax.lion(1e-2, b1=0.9, b2=0.95, weight_decay=0.0)
    if name == "sgd":
        return optax.sgd(1e-2, momentum=0.5)
    if name == "muon":
        axes = lambda path, leaf: (
            optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
            if path[-1].name == "weight" and leaf.ndim >= 2
            else None
        )
        numbers = lambda params: jax.tree_util.tree_map_with_path(axes, params)
        return optax.contrib.muon(1e-2, adam_b1=0.9, adam_b2=0.95, muon_weight_dimension_numbers=numbers)
    decay = lambda step, _: jnp.minimum(0.999, 1.0 - (step + 1.0) ** -0.8)
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=decay),
        optax.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16),
        optax.scale(-1e-2),
    )


@pytest.mark.parametrize("name", ["lion", "sgd", "muon", "adafactor"])
def test_a_named_optimiser_is_that_of_optax(name):
    model = make_clip(MODEL)
    arguments = (ArgumentConfig("momentum", 0.5),) if name == "sgd" else ()
    optim = OptimConfig(name=name, arguments=arguments, learning_rate=1e-2, weight_decay=0.0, schedule="constant")
    ours = _followed(make_optimizer(optim, make_schedule(optim, 10), model), model)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(_followed(_optax_own(name), model)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("name", ["lion", "muon", "adafactor", "novograd"])
def test_rates_and_decay_hold_for_each_optimiser(name):
    model = make_clip(MODEL)
    optim = OptimConfig(
        name=name,
        learning_rate=1e-2,
        weight_decay=0.5,
        schedule="constant",
        rates=(RateConfig("text.*", 0.0), RateConfig("vision.patch.*", 0.5)),
    )
    optimizer = make_optimizer(optim, make_schedule(optim, 10), model)
    zeros = jax.tree.map(jnp.zeros_like, model)
    state = optimizer.init(model)
    assert not any("text" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = jax.jit(optimizer.update)(zeros, state, model)
    # With no gradient the weights shrink by rate times decay, at half of it where the rate is half.
    np.testing.assert_allclose(updates.vision.projection.weight, -5e-3 * model.vision.projection.weight, atol=1e-7)
    np.testing.assert_allclose(updates.vision.patch.weight, -2.5e-3 * model.vision.patch.weight, atol=1e-7)
    assert updates.text.embedding is None


def test_an_optimiser_that_is_none_is_named():
    model = make_clip(MODEL)
    for optim, message in (
        (OptimConfig(name="adamm"), "optim.name='adamm' is no optimiser"),
        (OptimConfig(name="chain"), "is no optimiser"),
        (OptimConfig(name="lion", arguments=(ArgumentConfig("beta3", 1.0),)), "names beta3; lion takes b1, b2"),
    ):
        with pytest.raises(ValueError, match=message):
            make_optimizer(optim, make_schedule(optim, 10), model)
    optim = OptimConfig()
    with pytest.raises(TypeError, match="it returned int"):
        make_optimizer(optim, make_schedule(optim, 10), model, optimizer=lambda schedule, model: 3)
