"""The step of a stage as a program, before there is a state or a batch to run it on."""

import functools
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..config import DataConfig, RunConfig, stage_model, StageConfig
from ..models import CLIP, make_clip, with_execution
from ..sharding import batch_sharding
from ._layout import state_shardings
from ._optim import make_optimizer, make_schedule, trainable_mask
from ._state import init_state, TrainState
from ._step import DeviceBatch, make_train_step


def lower_step(config: RunConfig, stage: StageConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The step of a stage on a mesh, from shapes alone: nothing is allocated until it is compiled and called.

    `.compile()` gives the program that training runs, with the layout that `config.shard` names; its memory and
    collectives can be read off it.

    Raises:
        ValueError: the stage does not fit the mesh; `check_run` names all such faults.
    """
    schedule = make_schedule(stage.optim, stage.steps)

    def start() -> TrainState:
        model = make_clip(stage_model(config, stage), key=jax.random.key(0))
        model = as_executed(model, config, stage, mesh)
        averaged = eqx.filter(model, trainable_mask(stage.optim, model)) if stage.ema_decay else None
        optimizer = make_optimizer(stage.optim, schedule, model)
        return init_state(model, optimizer, averaged=averaged, key=jax.random.key(0))

    state = eqx.filter_eval_shape(start)
    optimizer = make_optimizer(stage.optim, schedule, state.model)
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    state = jax.tree.map(put, state, state_shardings(state, config.shard, mesh))
    batch = abstract_batch(config.data, stage, mesh)
    return make_train_step(stage, schedule, optimizer, mesh, shard=config.shard).lower(state, batch)


def as_executed(model: CLIP, config: RunConfig, stage: StageConfig, mesh: Mesh) -> CLIP:
    """The model as a stage runs it on the devices of a mesh."""
    return with_execution(
        model,
        layers=config.layers,
        remat_image=stage.remat_image,
        remat_text=stage.remat_text,
        attention=config.attention,
        device=mesh.devices.flat[0],
        steps=stage.steps,
    )


def abstract_batch(data: DataConfig, stage: StageConfig, mesh: Mesh) -> DeviceBatch:
    """Shapes, types and place of what one step of a stage takes, over all devices."""
    rows, length, side = stage.batch_size, data.caption_tokens, stage.image_size
    put = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    shapes = {
        "pixels": put((rows, side, side, 3), jnp.uint8),
        "tokens": put((rows, length), jnp.int32),
        "word_class": put((rows, length), jnp.uint8),
    }
    return cast(DeviceBatch, shapes)
