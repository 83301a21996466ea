"""Every way to carry out a step gives the plain step: accumulated, sharded, tiled, frozen, averaged, and together."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import tiny_batch, TINY_MODEL
from jax.sharding import PartitionSpec as P

from clipa_eqx.config import OptimConfig, RateConfig, StageConfig
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import DATA_AXIS, make_mesh, place, to_global, weight_specs
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step, state_shardings, trainable_mask


MODEL = dataclasses.replace(TINY_MODEL, vision=dataclasses.replace(TINY_MODEL.vision, drop_path=0.3, depth=2))
# Patches, tokens and skipped blocks are drawn at random; the gradient is clipped by its global norm.
STAGE = StageConfig(
    samples=1600,
    batch_size=16,
    image_size=16,
    image_reduction="random",
    keep_patches=9,
    text_length=6,
    text_reduction="random",
    optim=OptimConfig(learning_rate=1e-3, warmup_first="fraction", warmup_steps=2, clip_norm=0.1),
)
LIT = (RateConfig("vision.*", 0.0),)

# devices, shard, micro_batch, loss_tile, rates, ema_decay. Every choice of one column but the first meets every choice
# of each other one, in as few rows as that takes; a test below makes sure of it.
ROWS = [
    (1, "none", 4, 0, LIT, 0.0),
    (2, "none", 0, 5, (), 0.9),
    (4, "optimizer", 0, 5, LIT, 0.0),
    (8, "optimizer", 8, 0, (), 0.9),
    (8, "all", 8, 5, (), 0.0),
    (2, "all", 0, 0, LIT, 0.9),
]


def test_the_rows_cover_every_pair_of_choices():
    columns = [[bool(value) if place in (1, 2) else value for place, value in enumerate(row[1:])] for row in ROWS]
    for first, second in itertools.combinations(zip(*columns, strict=True), 2):
        assert set(zip(first, second, strict=True)) == set(itertools.product(first, second))


def _two_steps(stage, shard, num_devices):
    """Metrics of two steps, the gradient as Adam's first moment after one, the state after two."""
    mesh = make_mesh(jax.devices()[:num_devices])
    model = make_clip(MODEL, key=jax.random.key(0))
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    averaged = eqx.filter(model, trainable_mask(stage.optim, model)) if stage.ema_decay else None
    state = eqx.filter_jit(init_state)(model, optimizer, averaged=averaged, key=jax.random.key(1))
    state = place(state, state_shardings(state, shard, mesh))
    step = make_train_step(stage, schedule, optimizer, mesh, shard=shard)
    state, first = step(state, to_global(tiny_batch(0), mesh))
    gradient = jax.tree.map(np.array, optax.tree.get(state.opt_state, "mu"))
    state, second = step(state, to_global(tiny_batch(1), mesh))
    return jax.device_get([first, second]), gradient, state


@functools.cache
def _plain(rates):
    """The step as it is on one device, with an average."""
    return _two_steps(_stage(0, 0, rates, 0.9), "none", 1)


def _stage(micro_batch, loss_tile, rates, ema_decay):
    optim = dataclasses.replace(STAGE.optim, rates=rates)
    return dataclasses.replace(STAGE, micro_batch=micro_batch, loss_tile=loss_tile, ema_decay=ema_decay, optim=optim)


def _close(got, want, tolerance):
    """Within a share of the largest number of each array."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, (*row[:4], "lit" if row[4] else "", row[5]))))
def test_every_form_of_a_step_is_the_plain_step(row):
    num_devices, shard, *choices = row
    metrics, gradient, state = _two_steps(_stage(*choices), shard, num_devices)
    plain_metrics, plain_gradient, plain_state = _plain(row[4])
    for got, want in zip(metrics, plain_metrics, strict=True):
        np.testing.assert_allclose([*got.values()], [*want.values()], rtol=1e-5)
    _close(gradient, plain_gradient, 1e-5)
    _close(state.model, plain_state.model, 1e-4)
    if state.average is not None:
        _close(state.average, plain_state.average, 1e-5)

    # What the layout promises: no device holds more than its share of any matrix.
    split = {"none": (), "optimizer": (state.opt_state, state.average), "all": state}[shard]
    for array in jax.tree.leaves(split):
        if array.ndim >= 2 and array.size > 100:
            assert array.addressable_data(0).size * num_devices == array.size


def test_a_frozen_tower_takes_no_gradient_and_no_memory():
    _, gradient, state = _plain(LIT)
    assert gradient.vision.patch.weight is None
    assert state.average.vision.patch.weight is None
    assert not any(jax.tree.leaves((gradient.vision, state.average.vision)))
    start = make_clip(MODEL, key=jax.random.key(0)).vision
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(state.averaged_model.vision), strict=True):
        np.testing.assert_array_equal(before, after)


def test_matrices_are_split_and_vectors_are_not():
    model = eqx.filter_eval_shape(make_clip, MODEL, key=jax.random.key(0))
    specs = weight_specs(model, 8)
    assert specs.text.embedding == P(None, DATA_AXIS)
    assert specs.vision.stack.blocks.attention.qkv.weight == P(None, DATA_AXIS)
    assert specs.vision.stack.blocks.attention.qkv.bias == P()
    assert specs.logit_scale == P()
    with pytest.raises(
        ValueError, match=r"vision.stack.blocks.attention.qkv.weight \(2, 16, 48\).*over 5 devices|5 devices"
    ):
        weight_specs(model, 5)
