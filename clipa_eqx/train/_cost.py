"""What a step costs, counted by the compiler."""

import dataclasses
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config import DataConfig, RunConfig, stage_model, StageConfig, TextConfig, VisionConfig
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


def model_flops(config: RunConfig, stage: StageConfig) -> float:
    """Operations of the matrix products of one optimiser step, as model FLOP utilisation counts them.

    Twice per multiply-add, three times a forward pass, nothing for what is recomputed, for norms, activations or the
    optimiser. Plain arithmetic on the config: no device is asked.

    Args:
        config: the run.
        stage: the stage whose step is counted; batch over all devices.
    """
    vision, text = config.model.vision, config.model.text
    patches = stage.keep_patches or (stage.image_size // vision.patch_size) ** 2
    pixels = 3 * vision.patch_size**2
    # The patch embedding has no gradient of its input.
    products = _tower(vision, patches + vision.class_token) + patches * pixels * vision.width * 2 / 3
    products += _tower(text, stage.text_length)
    products += sum(tower.width * config.model.embed for tower in (vision, text) if tower.projection != "none")
    if vision.pool == "attention":
        tokens = patches + vision.class_token
        products += 2 * (tokens + 1) * vision.width**2 + 2 * tokens * vision.width + 2 * vision.width * vision.hidden
    logits = (2 if stage.loss == "softmax" else 1) * stage.batch_size * config.model.embed
    return 6.0 * stage.batch_size * (products + logits)


def _tower(tower: VisionConfig | TextConfig, tokens: int) -> int:
    """Multiply-adds of the blocks for one example, forward."""
    weights = 4 * tower.width**2 + 2 * tower.width * tower.hidden
    return tower.depth * tokens * (weights + 2 * tokens * tower.width)
