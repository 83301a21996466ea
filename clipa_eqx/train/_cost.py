"""What a step costs, counted by the compiler."""

import dataclasses
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config import DataConfig, RunConfig, stage_model, StageConfig
from ..models import make_clip, with_execution
from ..sharding import make_mesh
from ._optim import make_optimizer, make_schedule
from ._state import init_state, TrainState
from ._step import DeviceBatch, make_train_step


def step_flops(config: RunConfig, stage: StageConfig) -> float:
    """Floating-point operations of one optimiser step of a stage, forward, backward and update, over all devices.

    The step is traced on shapes alone and counted by XLA's cost analysis, a multiply-add as two. Blocks are written out
    for the count, since the analysis counts a loop's body once, and nothing is recomputed, so these are the model's own
    operations. Nothing is compiled or allocated: the largest models can be asked about.

    Raises:
        RuntimeError: the backend does not count.
    """
    mesh = make_mesh(jax.devices()[:1])
    schedule = make_schedule(stage.optim, stage.steps)

    def start() -> TrainState:
        model = make_clip(stage_model(config, stage), key=jax.random.key(0))
        model = with_execution(model, layers="unroll")
        return init_state(model, make_optimizer(stage.optim, schedule, model), key=jax.random.key(0))

    # The count of a loop over micro-batches would be that of one.
    stage = dataclasses.replace(stage, micro_batch=0)
    state = eqx.filter_eval_shape(start)
    optimizer = make_optimizer(stage.optim, schedule, state.model)
    step = make_train_step(stage, schedule, optimizer, mesh)
    cost = step.lower(state, _abstract_batch(config.data, stage)).cost_analysis()
    if not cost or "flops" not in cost:
        raise RuntimeError(f"XLA gives no cost analysis on the backend {jax.default_backend()!r}; count on a CPU.")
    return cost["flops"]


def _abstract_batch(data: DataConfig, stage: StageConfig) -> DeviceBatch:
    rows, length, side = stage.batch_size, data.caption_tokens, stage.image_size
    shapes = {
        "pixels": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "word_class": jax.ShapeDtypeStruct((rows, length), jnp.uint8),
    }
    return cast(DeviceBatch, shapes)
