"""One training step: a host batch of raw pixels and token ids in, an updated state and its metrics out."""

import functools
from collections.abc import Callable
from typing import Any, cast, Protocol, runtime_checkable, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, Int, Key as JaxKey, UInt8

from .._types import Key, Scalar
from ..config import Shard, StageConfig
from ..losses import clamp_logit_scale, contrastive_accuracy
from ..models import CLIP, for_compute, normalize_pixels, scale_pixels
from ..sharding import DATA_AXIS, sum_over_devices, to_own
from ._augment import augment_colors, jitter_order
from ._layout import gather_model, gradient_specs, parameter_specs, state_shardings
from ._optim import trainable_mask
from ._parts import choose_patches, choose_tokens, KeepImage, KeepText, Loss, pair_loss, Parts
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


@runtime_checkable
class TrainStep(Protocol):
    """A compiled step: called with a state and a batch, or lowered with their shapes."""

    def __call__(self, state: TrainState, batch: DeviceBatch | dict[str, Any]) -> tuple[TrainState, StepMetrics]:
        """The next state, and what the step measured; `state` is used up."""
        ...

    def lower(self, state: TrainState, batch: DeviceBatch | dict[str, Any]) -> jax.stages.Lowered:
        """The step as a program for arguments of these shapes and places."""
        ...


def make_train_step(
    stage: StageConfig,
    schedule: optax.Schedule,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    shard: Shard = "none",
    keep_image: KeepImage | None = None,
    keep_text: KeepText | None = None,
    loss: Loss | None = None,
) -> TrainStep:
    """Compile-once step of one stage, data-parallel over the mesh's `data` axis.

    Each device embeds its own rows, compares them with everybody's (gathered) and takes the gradient of the mean
    loss, so the update equals that of one device with the whole batch. The state is donated: use the returned one.

    Args:
        stage: what a step does.
        schedule: learning rate by update.
        optimizer: from `make_optimizer`.
        mesh: from `make_mesh`.
        shard: what is split over the devices; the state comes and goes in the layout of `state_shardings`.
        keep_image: chooses patches in place of the stage's `image_reduction`.
        keep_text: chooses tokens in place of its `text_reduction`.
        loss: in place of its `loss`.

    Returns:
        The jitted step.

    Raises:
        ValueError: when it is traced, if a given part returns what it must not.
    """
    parts = Parts(keep_image, keep_text, loss)

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, accuracy), grads = _loss_and_gradient(state.model, batch, stage, parts, mesh, shard, key=key)
        # optax raises Python numbers to integer powers, which a caller's strict promotion rules would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(cast(Any, grads), state.opt_state, cast(Any, state.model))
        model = eqx.apply_updates(state.model, updates)
        if stage.logit_scale_max:
            model = eqx.tree_at(
                lambda m: m.logit_scale, model, clamp_logit_scale(model.logit_scale, stage.logit_scale_max)
            )
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            learning_rate=jnp.asarray(schedule(state.step)),
            grad_norm=_norm(grads),
            inverse_temperature=jnp.exp(state.model.logit_scale),
        )
        average: Any = state.average
        if average is not None:
            new: Any = eqx.filter(model, trainable_mask(stage.optim, model))
            average = optax.incremental_update(new, average, 1.0 - stage.ema_decay)
        state = TrainState(model=model, opt_state=opt_state, average=average, step=state.step + 1, key=state.key)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, shard, mesh)), metrics

    return cast(TrainStep, jax.jit(step, donate_argnums=0))


def _loss_and_gradient(
    model: CLIP, batch: DeviceBatch, stage: StageConfig, parts: Parts, mesh: Mesh, shard: Shard, *, key: Key
) -> tuple[tuple[Scalar, Scalar], CLIP]:
    """Loss and accuracy of the whole batch, and the gradient of the trained arrays, laid out by `gradient_specs`."""
    trained, frozen = eqx.partition(model, trainable_mask(stage.optim, model))
    held, held_frozen = (parameter_specs(part, shard, mesh.size) for part in (trained, frozen))
    # On one device a split array is a whole one, and needs no sum.
    wanted = gradient_specs(trained, "all" if mesh.size == 1 else shard, mesh.size)
    held_model = eqx.combine(held, held_frozen)

    def local(trained: CLIP, frozen: CLIP, batch: DeviceBatch, key: Key) -> tuple[tuple[Scalar, Scalar], CLIP]:
        def usable(model: CLIP) -> CLIP:
            # Cast ahead of gathering, which then moves the narrower type.
            return gather_model(for_compute(model, stage.compute_dtype), held_model)

        def mean_loss(trained: CLIP) -> tuple[Scalar, Scalar]:
            return _mean_loss(eqx.combine(trained, frozen), usable, batch, stage, parts, key=key)

        results, grads = jax.value_and_grad(mean_loss, has_aux=True)(jax.tree.map(to_own, trained, held))
        return results, jax.tree.map(sum_over_devices, grads, held, wanted)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(held, held_frozen, P(DATA_AXIS), P()), out_specs=(P(), wanted))
    return mapped(trained, frozen, batch, key)


def _norm(grads: CLIP) -> Scalar:
    """Length of a gradient.

    Behind a barrier, so that its squares are not those of Adam: XLA on a CPU would write out what both share.
    """
    return optax.tree.norm(jax.lax.optimization_barrier(grads))


def _mean_loss(
    model: CLIP, usable: Callable[[CLIP], CLIP], batch: DeviceBatch, stage: StageConfig, parts: Parts, *, key: Key
) -> tuple[Scalar, Scalar]:
    """Loss and accuracy of the whole batch; runs inside the mapped step, where `batch` is this device's rows.

    `usable` makes whole arrays of the compute type out of `model`. It is called once for each micro-batch, so that
    their gradients add up in the type and the layout of the weights.
    """
    rows = batch["tokens"].shape[0]
    order_key, rows_key = jax.random.split(key)
    # Keys belong to rows of the whole batch: masks do not depend on how many devices share it.
    first_row = jax.lax.axis_index(DATA_AXIS) * rows
    keys = jax.vmap(functools.partial(jax.random.fold_in, rows_key))(first_row + jnp.arange(rows))
    order = jitter_order(order_key)

    def embed(
        batch: DeviceBatch, keys: JaxKey[Array, " rows"]
    ) -> tuple[Float[Array, "rows embed"], Float[Array, "rows embed"]]:
        one = functools.partial(_embed_pair, usable(model), stage, parts, order=order)
        return jax.vmap(lambda row, key: one(row["pixels"], row["tokens"], row["word_class"], key=key))(batch, keys)

    count = stage.batch_size // stage.micro_batch if stage.micro_batch else 1
    image_embed, text_embed = _in_micro_batches(embed, (batch, keys), count)
    form: dict[str, Any] = {"axis_name": DATA_AXIS, "tile": stage.loss_tile or None, "ring": stage.loss_ring}
    loss = pair_loss(stage, parts.loss, image_embed, text_embed, model, **form)
    accuracy = contrastive_accuracy(image_embed, text_embed, **form)
    return jax.lax.pmean(loss, DATA_AXIS), jax.lax.pmean(accuracy, DATA_AXIS)


def _in_micro_batches(embed: Callable[..., Any], rows: Any, count: int) -> Any:
    """Embed this device's rows in `count` equal parts, of which only the embeddings are kept.

    The backward pass has the gradient of the whole batch's loss at every embedding before it embeds each part again
    and adds up the gradients of the weights, so the gradient is exact: the form of GradCache (Gao et al., arXiv
    2101.06983).
    """
    if count == 1:
        return embed(*rows)
    parts = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    embeds = jax.lax.map(jax.checkpoint(lambda part: embed(*part), prevent_cse=False), parts)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), embeds)


def _embed_pair(
    model: CLIP,
    stage: StageConfig,
    parts: Parts,
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
    kept = choose_patches(stage, parts.keep_image, image, grid, key=patch_key)
    image_embed = model.encode_image(normalize_pixels(image, model.config.vision), kept=kept, key=image_key)

    text = model.config.text
    positions = choose_tokens(
        stage,
        parts.keep_text,
        tokens,
        priority=word_class.astype(jnp.int32),
        pad_id=text.pad_id,
        end_id=None if text.end_id < 0 else text.end_id,
        key=token_key,
    )
    return image_embed, model.encode_text(tokens[positions], key=text_key)
