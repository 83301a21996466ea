"""One training step: a host batch of raw pixels and token ids in, an updated state and its metrics out."""

import functools
from typing import Any, cast, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from .._types import Key, Scalar
from ..config import StageConfig
from ..losses import clamp_logit_scale, contrastive_accuracy, sigmoid_contrastive, softmax_contrastive
from ..models import CLIP, normalize_pixels, scale_pixels
from ..reduction import keep_patches, keep_tokens
from ..sharding import DATA_AXIS
from ._augment import augment_colors, jitter_order
from ._state import TrainState


class DeviceBatch(TypedDict):
    """One step's pairs, split over the devices by rows."""

    pixels: UInt8[Array, "batch height width 3"]
    tokens: Int[Array, "batch length"]
    word_class: UInt8[Array, "batch length"]


class StepMetrics(TypedDict):
    """Scalars of one step, equal on every device."""

    loss: Scalar
    accuracy: Scalar
    learning_rate: Scalar
    grad_norm: Scalar
    inverse_temperature: Scalar


def make_train_step(
    stage: StageConfig, schedule: optax.Schedule, optimizer: optax.GradientTransformation, mesh: Mesh
) -> jax.stages.Wrapped:
    """Compile-once step of one stage, data-parallel over the mesh's `data` axis.

    Each device embeds its own rows, compares them with everybody's (gathered) and takes the gradient of the mean
    loss, so the update equals that of one device with the whole batch. The state is donated: use the returned one.

    Returns:
        A jitted function of a state and a `DeviceBatch` that returns the next state and its `StepMetrics`.
    """

    def local_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, accuracy), grads = jax.value_and_grad(_mean_loss, has_aux=True)(state.model, batch, stage, key=key)
        # optax raises Python numbers to integer powers, which a caller's strict promotion rules would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, cast(Any, state.model))
        model = eqx.apply_updates(state.model, updates)
        if stage.logit_scale_max:
            model = eqx.tree_at(
                lambda m: m.logit_scale, model, clamp_logit_scale(model.logit_scale, stage.logit_scale_max)
            )
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            learning_rate=jnp.asarray(schedule(state.step)),
            grad_norm=optax.tree.norm(grads),
            inverse_temperature=jnp.exp(state.model.logit_scale),
        )
        return TrainState(model=model, opt_state=opt_state, step=state.step + 1, key=state.key), metrics

    sharded = jax.shard_map(local_step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=(P(), P()))
    return jax.jit(sharded, donate_argnums=0)


def _mean_loss(model: CLIP, batch: DeviceBatch, stage: StageConfig, *, key: Key) -> tuple[Scalar, Scalar]:
    """Loss and accuracy of the whole batch; runs inside the mapped step, where `batch` is this device's rows."""
    rows = batch["tokens"].shape[0]
    order_key, rows_key = jax.random.split(key)
    # Keys belong to rows of the whole batch: masks do not depend on how many devices share it.
    first_row = jax.lax.axis_index(DATA_AXIS) * rows
    keys = jax.vmap(functools.partial(jax.random.fold_in, rows_key))(first_row + jnp.arange(rows))
    embed = functools.partial(_embed_pair, model, stage, order=jitter_order(order_key))
    image_embed, text_embed = jax.vmap(
        lambda pixels, tokens, word_class, key: embed(pixels, tokens, word_class, key=key)
    )(batch["pixels"], batch["tokens"], batch["word_class"], keys)
    tile = stage.loss_tile or None
    if stage.loss == "sigmoid":
        if model.logit_bias is None:
            raise ValueError(
                "The sigmoid loss needs a model with a logit bias: set model.init_logit_bias (SigLIP: -10)."
            )
        loss = sigmoid_contrastive(
            image_embed, text_embed, model.logit_scale, model.logit_bias, axis_name=DATA_AXIS, tile=tile
        )
    else:
        loss = softmax_contrastive(image_embed, text_embed, model.logit_scale, axis_name=DATA_AXIS, tile=tile)
    accuracy = contrastive_accuracy(image_embed, text_embed, axis_name=DATA_AXIS, tile=tile)
    return jax.lax.pmean(loss, DATA_AXIS), jax.lax.pmean(accuracy, DATA_AXIS)


def _embed_pair(
    model: CLIP,
    stage: StageConfig,
    pixels: UInt8[Array, "height width 3"],
    tokens: Int[Array, " length"],
    word_class: UInt8[Array, " length"],
    *,
    order: Int[Array, " 4"],
    key: Key,
) -> tuple[Float[Array, " embed"], Float[Array, " embed"]]:
    """Reduce one pair to the tokens of the stage and embed both sides."""
    color_key, patch_key, token_key, image_key, text_key = jax.random.split(key, 5)

    image = scale_pixels(pixels)
    if stage.augment.jitter:
        image = augment_colors(image, stage.augment, order, key=color_key)
    patch = model.config.vision.patch_size
    grid = (image.shape[0] // patch, image.shape[1] // patch)
    kept = keep_patches(stage.image_reduction, grid, stage.keep_patches, key=patch_key)
    image_embed = model.encode_image(normalize_pixels(image, model.config.vision), kept=kept, key=image_key)

    text = model.config.text
    positions = keep_tokens(
        stage.text_reduction,
        tokens,
        stage.text_length,
        priority=word_class.astype(jnp.int32),
        pad_id=text.pad_id,
        end_id=None if text.end_id < 0 else text.end_id,
        key=token_key,
    )
    return image_embed, model.encode_text(tokens[positions], key=text_key)
