"""The parts of a step that a run may bring along: what keeps patches and tokens, the loss, the optimiser."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._types import Key, Pixels, Scalar, TokenIds
from ..config import StageConfig
from ..losses import sigmoid_contrastive, softmax_contrastive
from ..models import CLIP
from ..reduction import keep_patches, keep_tokens
from ._optim import GivenOptimizer


@runtime_checkable
class KeepImage(Protocol):
    """Chooses the patches of one image that its tower sees."""

    def __call__(self, pixels: Pixels, grid: tuple[int, int], count: int, *, key: Key) -> Int[Array, " kept"] | None:
        """Choose.

        Args:
            pixels: the image, augmented, in [0, 1]; it may be looked at.
            grid: rows and columns of patches.
            count: patches to keep, the stage's `keep_patches`.
            key: randomness.

        Returns:
            Row-major positions, `count` of them; None: all patches.
        """
        ...


@runtime_checkable
class KeepText(Protocol):
    """Chooses the tokens of one text that its tower reads."""

    def __call__(
        self,
        tokens: TokenIds,
        length: int,
        *,
        priority: Int[Array, " length"],
        pad_id: int,
        end_id: int | None,
        key: Key,
    ) -> Int[Array, " kept"]:
        """Choose.

        Args:
            tokens: ids of the text, padded.
            length: tokens to keep, the stage's `text_length`.
            priority: word class of each token, as `syntax_text` ranks them.
            pad_id: id of padding.
            end_id: id that ends a text; None: the vocabulary has none.
            key: randomness.

        Returns:
            Positions, `length` of them.
        """
        ...


@runtime_checkable
class Loss(Protocol):
    """Loss of the pairs of one device against those of all, as the losses of `clipa_eqx.losses` compute it."""

    def __call__(
        self,
        image_embed: Float[Array, "rows embed"],
        text_embed: Float[Array, "rows embed"],
        model: CLIP,
        *,
        axis_name: str,
        tile: int | None,
        ring: bool,
    ) -> Scalar:
        """Compute.

        Args:
            image_embed: unit vectors of this device's images.
            text_embed: unit vectors of their texts.
            model: the model, for its `logit_scale` and `logit_bias`.
            axis_name: mesh axis over which the rows of all devices are gathered.
            tile: the stage's `loss_tile`.
            ring: the stage's `loss_ring`.

        Returns:
            This device's share: its mean over the devices is the loss of the whole batch.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """What a run is given as values, in place of what its config names; None: what the config names."""

    keep_image: KeepImage | None = None
    """Used in the stages that keep a part of the patches (`keep_patches` above 0)."""
    keep_text: KeepText | None = None
    loss: Loss | None = None
    optimizer: GivenOptimizer | None = None

    def given(self) -> dict[str, str]:
        """Name and origin of each part that is given, for the record of a run."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: origin(value) for name, value in values.items() if value is not None}


def origin(value: Any) -> str:
    """Module and name of a function, or of the class of another value."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def choose_patches(
    stage: StageConfig, given: KeepImage | None, pixels: Pixels, grid: tuple[int, int], *, key: Key
) -> Int[Array, " kept"] | None:
    """Positions of the patches that a stage keeps; None: all.

    Raises:
        ValueError: a given part returns something else than so many positions.
    """
    if given is None or stage.keep_patches == 0:
        return keep_patches(stage.image_reduction, grid, stage.keep_patches, key=key)
    kept = given(pixels, grid, stage.keep_patches, key=key)
    if kept is None:
        return None
    return _positions("keep_image", kept, stage.keep_patches)


def choose_tokens(
    stage: StageConfig,
    given: KeepText | None,
    tokens: TokenIds,
    *,
    priority: Int[Array, " length"],
    pad_id: int,
    end_id: int | None,
    key: Key,
) -> Int[Array, " kept"]:
    """Positions of the tokens that a stage keeps.

    Raises:
        ValueError: a given part returns something else than so many positions.
    """
    options: Any = {"priority": priority, "pad_id": pad_id, "end_id": end_id, "key": key}
    if given is None:
        return keep_tokens(stage.text_reduction, tokens, stage.text_length, **options)
    return _positions("keep_text", given(tokens, stage.text_length, **options), stage.text_length)


def _positions(name: str, found: Any, count: int) -> Int[Array, " kept"]:
    kind = f"{getattr(found, 'dtype', type(found).__name__)} of shape {getattr(found, 'shape', ())}"
    if not (
        isinstance(found, jax.Array | np.ndarray)
        and found.shape == (count,)
        and jnp.issubdtype(found.dtype, jnp.integer)
    ):
        raise ValueError(f"{name} must return {count} positions, an integer array of shape ({count},); got {kind}.")
    return jnp.asarray(found)


def pair_loss(
    stage: StageConfig,
    given: Loss | None,
    image_embed: Float[Array, "rows embed"],
    text_embed: Float[Array, "rows embed"],
    model: CLIP,
    **form: Any,
) -> Scalar:
    """The loss of a stage.

    Raises:
        ValueError: a given part returns something else than one number, or the sigmoid loss meets a model without bias.
    """
    loss = (given or LOSSES[stage.loss])(image_embed, text_embed, model, **form)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        kind = f"{getattr(loss, 'dtype', type(loss).__name__)} of shape {getattr(loss, 'shape', None)}"
        raise ValueError(f"loss must return one floating-point number, an array of shape (); got {kind}.")
    return loss


def _softmax(
    image_embed: Float[Array, "rows embed"], text_embed: Float[Array, "rows embed"], model: CLIP, **form: Any
) -> Scalar:
    return softmax_contrastive(image_embed, text_embed, model.logit_scale, **form)


def _sigmoid(
    image_embed: Float[Array, "rows embed"], text_embed: Float[Array, "rows embed"], model: CLIP, **form: Any
) -> Scalar:
    if model.logit_bias is None:
        raise ValueError("The sigmoid loss needs a model with a logit bias: set model.init_logit_bias (SigLIP: -10).")
    return sigmoid_contrastive(image_embed, text_embed, model.logit_scale, model.logit_bias, **form)


LOSSES: dict[str, Loss] = {"softmax": _softmax, "sigmoid": _sigmoid}
"""Losses by the name that a config gives them."""
