"""Two towers in one space."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._checks import check_choice
from .._types import Key, Pixels, Scalar, TokenIds
from ..config import AttentionKernel, CLIPConfig, Layers, Remat
from ..nn import form_for, layers_for, Stack, wide_dtype
from ._presets import presets
from ._text import make_text, TextTower
from ._vision import make_vision, VisionTower


class CLIP(eqx.Module):
    """An image tower and a text tower that meet in one space (Radford et al., arXiv 2103.00020).

    Both methods take one example; use `jax.vmap` for a batch. Activations have the type of the weights.
    """

    vision: VisionTower
    text: TextTower
    logit_scale: Scalar
    """Natural logarithm of the inverse temperature."""
    logit_bias: Scalar | None
    """Bias of the logits; only for the sigmoid loss."""
    config: CLIPConfig = eqx.field(static=True)

    def encode_image(
        self,
        pixels: Pixels,
        *,
        kept: Int[Array, " kept"] | None = None,
        normalize: bool = True,
        key: Key | None = None,
    ) -> Float[Array, " embed"]:
        """Embed one image.

        Args:
            pixels: a normalised image; the patch size divides both sides.
            kept: row-major positions of the patches to look at, any index vector; none: all.
            normalize: scale the result to length 1.
            key: randomness of stochastic depth; none: no branch is skipped, as in inference.

        Returns:
            The embedding, in at least float32.

        Raises:
            ValueError: the patch size does not divide the image, or a stored position table has another grid.
        """
        return _finished(self.vision(pixels, kept=kept, key=key), normalize)

    def encode_text(
        self, tokens: TokenIds, *, normalize: bool = True, key: Key | None = None
    ) -> Float[Array, " embed"]:
        """Embed one text.

        Args:
            tokens: token ids, at most the context length of a learned position table.
            normalize: scale the result to length 1.
            key: randomness of stochastic depth; none: no branch is skipped, as in inference.

        Returns:
            The embedding, in at least float32.

        Raises:
            ValueError: the text is longer than the learned position table.
        """
        return _finished(self.text(tokens, key=key), normalize)


def make_clip(config: CLIPConfig | str, *, key: Key) -> CLIP:
    """Draw a new model.

    Under `jax.jit` with output shardings, each device draws its own part; under `eqx.filter_eval_shape`, nothing is
    allocated.

    Args:
        config: the model, or the name of one of `presets`.
        key: randomness of the weights.

    Raises:
        ValueError: there is no preset of that name.
    """
    if isinstance(config, str):
        if config not in presets:
            raise ValueError(f"There is no preset {config!r}; there are: {', '.join(presets)}.")
        config = presets[config]
    return _drawn(config, key)


# One compiled call draws a small model in half the time of op by op.
@eqx.filter_jit
def _drawn(config: CLIPConfig, key: Key) -> CLIP:
    vision_key, text_key = jax.random.split(key)
    return CLIP(
        vision=make_vision(config.vision, config.embed, key=vision_key),
        text=make_text(config.text, config.embed, key=text_key),
        logit_scale=jnp.asarray(config.init_logit_scale, jnp.float32),
        logit_bias=None if config.init_logit_bias is None else jnp.asarray(config.init_logit_bias, jnp.float32),
        config=config,
    )


def with_execution(
    model: CLIP,
    *,
    layers: Layers = "auto",
    remat_image: Remat = "none",
    remat_text: Remat = "none",
    attention: AttentionKernel = "auto",
    device: jax.Device | None = None,  # pyright: ignore[reportInvalidTypeForm]
    steps: int | None = None,
) -> CLIP:
    """The same weights, run in another way: values and gradients stay, up to rounding; time and memory change.

    Args:
        model: the model.
        layers: blocks as one scanned body, written out, or whichever suits the device and the number of steps.
        remat_image: what the image tower recomputes in the backward pass.
        remat_text: what the text tower recomputes in the backward pass.
        attention: what computes attention.
        device: one of the kind it is to run on; none: JAX's first.
        steps: how often the program will run; none: not known, so that long compilation is not worth it.

    Raises:
        ValueError: an unknown choice, or one that the device cannot follow.
    """
    check_choice("layers", layers, Layers)
    check_choice("remat_image", remat_image, Remat)
    check_choice("remat_text", remat_text, Remat)
    check_choice("attention", attention, AttentionKernel)
    runs_on = device or jax.devices()[0]
    # Only NVIDIA's devices have it.
    capability = float(getattr(runs_on, "compute_capability", None) or 0)
    form = form_for(runs_on.platform, attention, compute_capability=capability)

    def run(stack: Stack, remat: Remat) -> Stack:
        chosen = layers_for(runs_on.platform, stack.depth, steps) if layers == "auto" else layers
        return dataclasses.replace(stack, layers=chosen, remat=remat, form=form)

    return eqx.tree_at(
        lambda clip: (clip.vision.stack, clip.text.stack),
        model,
        (run(model.vision.stack, remat_image), run(model.text.stack, remat_text)),
    )


def count_parameters(model: PyTree) -> int:
    """Numbers held by the arrays of a model, or of a part of one; shapes suffice."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _finished(x: Float[Array, " embed"], normalize: bool) -> Float[Array, " embed"]:
    x = x.astype(wide_dtype(x.dtype))
    if not normalize:
        return x
    # The floor keeps the gradient finite at the origin; it is the square of torch's 1e-12.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x)), 1e-24))
