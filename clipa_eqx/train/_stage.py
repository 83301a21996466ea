"""A stage before its first step: the model as it runs, its optimiser, its state and its step."""

import functools
from typing import Any, cast, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from .._types import Key
from ..config import DataConfig, RunConfig, stage_model, StageConfig
from ..models import CLIP, make_clip, transfer, with_execution
from ..sharding import batch_sharding, place, replicate
from ._layout import state_shardings
from ._optim import make_optimizer, make_schedule, trainable_mask
from ._parts import Parts
from ._state import init_state, TrainState
from ._step import DeviceBatch, make_train_step, TrainStep


class StageStart(NamedTuple):
    """What a stage begins with. Training, lowering and planning all come by it through `start_stage`."""

    model: CLIP
    """At the stage's sizes, run as its devices like it; shapes where only shapes were given."""
    optimizer: optax.GradientTransformation
    step: TrainStep
    state: TrainState
    """Shape, type and place of every array."""


def start_stage(
    config: RunConfig, stage: StageConfig, model: CLIP, mesh: Mesh, parts: Parts | None = None
) -> StageStart:
    """Prepare a stage; nothing is computed on a device but moved positions.

    Args:
        config: the run.
        stage: one of its stages.
        model: the weights that the stage starts from, of an earlier stage or any other source; shapes suffice.
        mesh: from `make_mesh`.
        parts: what the run was given as values.

    Raises:
        ValueError: the model is not the stage's, but for sizes; or the stage does not fit the mesh.
    """
    parts = parts or Parts()
    moved = functools.partial(transfer, config=stage_model(config, stage), image_positions=stage.position_transfer)
    model = moved(model) if _holds_arrays(model) else eqx.filter_eval_shape(moved, model)
    model = with_execution(
        model,
        layers=config.layers,
        remat_image=stage.remat_image,
        remat_text=stage.remat_text,
        attention=config.attention,
        device=mesh.devices.flat[0],
        steps=stage.steps,
    )
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model, optimizer=parts.optimizer)
    shapes = jax.eval_shape(functools.partial(_first, stage, optimizer), model, jax.random.key(0))
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return StageStart(
        model,
        optimizer,
        make_train_step(
            stage,
            schedule,
            optimizer,
            mesh,
            shard=config.shard,
            keep_image=parts.keep_image,
            keep_text=parts.keep_text,
            loss=parts.loss,
        ),
        jax.tree.map(put, shapes, state_shardings(shapes, config.shard, mesh)),
    )


def first_state(start: StageStart, stage: StageConfig, mesh: Mesh, *, key: Key) -> TrainState:
    """The state before the first step; each device gets its own part and no more.

    Args:
        start: from `start_stage`, whose weights are used up.
        stage: the stage.
        mesh: as there.
        key: root of the stage's randomness.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, start.state)
    begin = jax.jit(functools.partial(_first, stage, start.optimizer), out_shardings=shardings, donate_argnums=0)
    return begin(place(start.model, shardings.model), replicate(key, mesh))


def _first(stage: StageConfig, optimizer: optax.GradientTransformation, model: CLIP, key: Key) -> TrainState:
    averaged = eqx.filter(model, trainable_mask(stage.optim, model)) if stage.ema_decay else None
    return init_state(model, optimizer, averaged=averaged, key=key)


def _holds_arrays(model: CLIP) -> bool:
    return isinstance(model.logit_scale, jax.Array)


def lower_step(config: RunConfig, stage: StageConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The step of a stage on a mesh, from shapes alone: nothing is allocated until it is compiled and called.

    `.compile()` gives the program that training runs, with the layout that `config.shard` names; its memory and
    collectives can be read off it.

    Raises:
        ValueError: the stage does not fit the mesh; `check_run` names all such faults.
    """
    shapes = eqx.filter_eval_shape(make_clip, stage_model(config, stage), key=jax.random.key(0))
    start = start_stage(config, stage, shapes, mesh)
    return start.step.lower(start.state, abstract_batch(config.data, stage, mesh))


def abstract_batch(data: DataConfig, stage: StageConfig, mesh: Mesh) -> DeviceBatch:
    """Shapes, types and place of what one step of a stage takes, over all devices."""
    rows, length, side = stage.batch_size, data.caption_tokens, stage.image_size
    put = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    shapes: Any = {
        "pixels": put((rows, side, side, 3), jnp.uint8),
        "tokens": put((rows, length), jnp.int32),
        "word_class": put((rows, length), jnp.uint8),
    }
    return cast(DeviceBatch, shapes)
