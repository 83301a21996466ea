"""One step: the same update on any number of devices, reductions and augmentation inside, state donated."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_batch, TINY_MODEL

from clipa_eqx.config import AugmentConfig, OptimConfig, StageConfig
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh, replicate, to_global
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step, run_keys
from clipa_eqx.train._loop import _data_seed


STAGE = StageConfig(
    samples=1600,
    batch_size=16,
    image_size=16,
    text_length=6,
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=10),
    logit_scale_max=100.0,
)


def _start(config, stage, mesh):
    model = eqx.filter_jit(make_clip)(config, key=jax.random.key(0))
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    averaged = model if stage.ema_decay else None
    state = eqx.filter_jit(init_state)(model, optimizer, averaged=averaged, key=jax.random.key(1))
    return replicate(state, mesh), make_train_step(stage, schedule, optimizer, mesh)


def _run(stage, num_devices, steps, config=TINY_MODEL):
    mesh = make_mesh(jax.devices()[:num_devices])
    state, step = _start(config, stage, mesh)
    history = []
    for seed in range(steps):
        state, metrics = step(state, to_global(tiny_batch(seed), mesh))
        history.append({name: float(value) for name, value in metrics.items()})
    return jax.tree.map(np.array, state.model), history


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_one_and_eight_devices_make_the_same_model(loss):
    """With all that is drawn in a step: colours, patches, tokens, skipped blocks; once with two micro-batches."""
    stage = dataclasses.replace(
        STAGE,
        loss=loss,
        image_reduction="random",
        keep_patches=9,
        text_reduction="random",
        augment=AugmentConfig(jitter=0.4) if loss == "softmax" else AugmentConfig(),
    )
    config = dataclasses.replace(TINY_MODEL, vision=dataclasses.replace(TINY_MODEL.vision, drop_path=0.3))
    one, one_history = _run(stage, 1, steps=4, config=config)
    if loss == "softmax":
        stage = dataclasses.replace(stage, micro_batch=8)
    eight, eight_history = _run(stage, 8, steps=4, config=config)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(one_history, eight_history, strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-4)


def test_the_loss_falls_on_a_batch_that_repeats():
    mesh = make_mesh(jax.devices()[:1])
    state, step = _start(TINY_MODEL, STAGE, mesh)
    losses = []
    for _ in range(30):
        state, metrics = step(state, to_global(tiny_batch(), mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert float(metrics["accuracy"]) > 0.5


def test_first_update_has_rate_zero_and_the_rate_is_reported():
    _, history = _run(STAGE, 1, steps=3)
    np.testing.assert_allclose([row["learning_rate"] for row in history], [0.0, 1e-4, 2e-4], rtol=1e-6)


def test_inverse_temperature_is_clamped():
    stage = dataclasses.replace(STAGE, logit_scale_max=5.0)
    model, _ = _run(stage, 1, steps=1)
    np.testing.assert_allclose(jnp.exp(model.logit_scale), 5.0, rtol=1e-6)


def test_the_average_is_that_of_its_formula():
    """Of the weights before the first step, after it and after the second: shares 0.81, 0.09 and 0.1."""
    mesh = make_mesh(jax.devices()[:1])
    stage = dataclasses.replace(STAGE, ema_decay=0.9)
    state, step = _start(TINY_MODEL, stage, mesh)
    models = [jax.tree.map(np.array, state.model)]
    for seed in range(2):
        state, _ = step(state, to_global(tiny_batch(seed), mesh))
        models.append(jax.tree.map(np.array, state.model))
    expected = jax.tree.map(lambda first, second, third: 0.81 * first + 0.09 * second + 0.1 * third, *models)
    for got, want in zip(jax.tree.leaves(state.averaged_model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def _first_loss(stage, batch, *, state_step=0, key=1, config=TINY_MODEL):
    """Loss of one step of the first weights."""
    mesh = make_mesh(jax.devices()[:1])
    state, step = _start(config, stage, mesh)
    state = dataclasses.replace(state, step=jnp.asarray(state_step, jnp.int32), key=jax.random.key(key))
    return float(step(replicate(state, mesh), to_global(batch, mesh))[1]["loss"])


def test_each_step_and_each_stage_draws_anew():
    stage = dataclasses.replace(STAGE, image_reduction="random", keep_patches=9)
    batch = tiny_batch()
    drawn = [
        _first_loss(stage, batch),
        _first_loss(stage, batch, state_step=1),
        _first_loss(stage, batch, key=2),
    ]
    assert len(set(drawn)) == 3
    _, stages = run_keys(0, 2)
    assert jax.random.key_data(stages[0]).tolist() != jax.random.key_data(stages[1]).tolist()
    assert _data_seed(0, 0) != _data_seed(0, 1) != _data_seed(1, 1)


def test_syntax_reads_the_word_classes():
    batch = tiny_batch()
    flat = batch | {"word_class": np.zeros_like(batch["word_class"])}
    syntax = dataclasses.replace(STAGE, text_reduction="syntax")
    assert _first_loss(syntax, batch) != _first_loss(syntax, flat)
    assert _first_loss(STAGE, batch) == _first_loss(STAGE, flat)


def test_a_stage_with_jitter_jitters():
    jittered = dataclasses.replace(STAGE, augment=AugmentConfig(jitter=0.4))
    assert _first_loss(jittered, tiny_batch()) != _first_loss(STAGE, tiny_batch())
