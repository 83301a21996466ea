"""The optimiser of a stage, composed from optax: clipping, direction, decay set, schedule, rates by name."""

import fnmatch
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config import DecaySet, OptimConfig
from ..models import CLIP
from ._optimizers import scale_by


GivenOptimizer = optax.GradientTransformation | Callable[[optax.Schedule, CLIP], optax.GradientTransformation]
"""An optimiser with its own rates, or what makes one of the stage's schedule and the model (shapes suffice)."""

# Learned vectors that no decay set touches, by the name of their field.
_NEVER_DECAYED = ("bias", "scale", "attention_scale", "mlp_scale", "class_token", "logit_scale", "logit_bias")

# Fields of a tower that come before its blocks.
_BELOW_BLOCKS = ("patch", "class_token", "position", "input_norm", "embedding")


def make_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of update 0, 1, ..., `steps` - 1.

    Warmup is linear and comes first. `warmup_first` decides its first value: CLIPA-JAX and big_vision use
    step / warmup, so their first update has rate 0; open_clip uses (step + 1) / warmup.

    - cosine: after warmup, 0.5 (1 + cos(pi progress)), which reaches 0 at update `steps`.
    - constant: flat, then linear to 0 over the last `cooldown_steps`.
    - rsqrt: sqrt(timescale / (timescale + steps since warmup)) (big_vision), then the same cooldown.
    """
    peak, warmup, cooldown = optim.learning_rate, optim.warmup_steps, optim.cooldown_steps
    offset = 1.0 if optim.warmup_first == "fraction" else 0.0

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        if optim.schedule == "cosine":
            progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            rate = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif optim.schedule == "rsqrt":
            rate = jax.lax.rsqrt(1.0 + jnp.maximum(step - warmup, 0.0) / optim.rsqrt_timescale)
        else:
            rate = jnp.ones_like(step)
        if optim.schedule != "cosine" and cooldown:
            rate = rate * jnp.clip((steps - step) / cooldown, 0.0, 1.0)
        if warmup:
            rate = jnp.where(step < warmup, jnp.minimum((step + offset) / warmup, 1.0), rate)
        return peak * rate

    return schedule


def decay_mask(model: CLIP, decay_set: DecaySet) -> Any:
    """Which arrays weight decay touches, as a tree of booleans.

    - matrices: the weights of linear layers, the patch embedding among them; no token embeddings, no position tables
      (big_vision and CLIPA-JAX's `.*/kernel`).
    - all_but_norms: every array but biases, norms, layer scales, the class token and the temperature, so token
      embeddings and learned position tables decay too (open_clip's rule of two or more dimensions).
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].name
        return name == "weight" if decay_set == "matrices" else name not in _NEVER_DECAYED

    return jax.tree_util.tree_map_with_path(decays, model)


def trainable_mask(optim: OptimConfig, model: CLIP) -> Any:
    """Which arrays are trained, as a tree of booleans: all but those of rate 0 and frozen position tables."""
    frozen = model.config.vision.position == "frozen"
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(_factor(optim, _name(path))) and not (frozen and _name(path) == "vision.position"), model
    )


def rate_factors(optim: OptimConfig, model: CLIP) -> Any:
    """What the learning rate of each array is multiplied by: `rates` times layer decay.

    Layer decay gives blocks 1 to depth the factor `decay^(depth + 1 - block)`, what lies before them (patches or token
    embeddings, class token, positions) `decay^(depth + 1)`, what follows 1. Source: BEiT (optim_factory.py), and timm's
    param_groups_layer_decay, which count alike.

    Returns:
        A tree of float32 arrays: a scalar, or for stacked arrays one number per block in the shape of the leading axis.
    """
    decays = {"vision": optim.image_layer_decay, "text": optim.text_layer_decay}
    depths = {"vision": model.config.vision.depth, "text": model.config.text.depth}

    def factor(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        tower, field = path[0].name, path[1].name if len(path) > 1 else ""
        layers: Any = 0.0
        if field == "stack":
            layers = np.arange(depths[tower], 0, -1).reshape(-1, *[1] * (leaf.ndim - 1))
        elif field in _BELOW_BLOCKS:
            layers = depths[tower] + 1
        return np.asarray(_factor(optim, _name(path)) * decays.get(tower, 1.0) ** layers, np.float32)

    return jax.tree_util.tree_map_with_path(factor, model)


def check_rates(optim: OptimConfig, model: CLIP) -> None:
    """Make sure that every pattern of `optim.rates` names an array and that something is trained.

    Raises:
        ValueError: a pattern that decides over no array, or nothing to train.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    for rate in optim.rates:
        if not fnmatch.filter(names, rate.pattern):
            raise ValueError(
                f"optim.rates names {rate.pattern!r}, which is the name of no array; names are as {names[0]}, "
                f"{names[-1]}, and * stands for any part of one."
            )
    if not any(jax.tree.leaves(trainable_mask(optim, model))):
        raise ValueError("optim.rates freezes every array: nothing would be trained.")


def check_frozen(optim: OptimConfig, drawn: Any) -> None:
    """Make sure that no array is frozen that was drawn instead of loaded, unless it is named in full.

    Args:
        optim: the rates.
        drawn: the part of a model that was drawn, None in place of the rest.

    Raises:
        ValueError: a pattern freezes what was drawn.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(drawn)]
    for rate in optim.rates:
        noise = [name for name in fnmatch.filter(names, rate.pattern) if name != rate.pattern]
        noise = [name for name in noise if _factor(optim, name) == 0.0]
        if rate.factor == 0.0 and noise:
            raise ValueError(
                f"optim.rates freezes {rate.pattern!r}, but {noise[0]} and {len(noise) - 1} more arrays that it names "
                "are drawn at random, not loaded: start from weights (--init-from), or name each array in full."
            )


def _factor(optim: OptimConfig, name: str) -> float:
    return next((rate.factor for rate in optim.rates if fnmatch.fnmatchcase(name, rate.pattern)), 1.0)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def make_optimizer(
    optim: OptimConfig, schedule: optax.Schedule, model: CLIP, *, optimizer: GivenOptimizer | None = None
) -> optax.GradientTransformation:
    """Clip, the optimiser's direction, decoupled decay, learning rate, in the order of big_vision and torch's AdamW.

    It takes the whole model and stores nothing for frozen arrays, whose gradients may be None.

    Args:
        optim: the numbers.
        schedule: learning rate by update.
        model: the model whose arrays `optim` names; shapes suffice.
        optimizer: instead of the one that `optim` names: a transformation with its own rates, or a function of
            `schedule` and `model` that makes one. Of `optim` it takes the frozen arrays alone.

    Raises:
        ValueError: `optim.rates` names no array, or freezes all; or optax has no such optimiser or argument.
        TypeError: `optimizer` is neither, or makes something else.
    """
    check_rates(optim, model)
    if optimizer is not None:
        return _of_trained(_given(optimizer, schedule, model), optim)
    steps: list[optax.GradientTransformation] = []
    if optim.clip_norm:
        steps.append(optax.clip_by_global_norm(optim.clip_norm))
    steps.append(scale_by(optim))
    if optim.weight_decay:
        mask: Any = lambda params: decay_mask(params, optim.decay_set)
        steps.append(optax.add_decayed_weights(optim.weight_decay, mask=mask))
    if optim.rates or (optim.image_layer_decay, optim.text_layer_decay) != (1.0, 1.0):
        scale: Any = lambda updates, _: _scaled(updates, rate_factors(optim, updates))
        steps.append(optax.stateless(scale))
    steps.append(optax.scale_by_learning_rate(schedule))
    return _of_trained(optax.chain(*steps), optim)


def _given(optimizer: GivenOptimizer, schedule: optax.Schedule, model: CLIP) -> optax.GradientTransformation:
    made = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(schedule, model)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, or a function of (schedule, model) that returns one; "
            f"it returned {type(made).__name__}."
        )
    return made


def _scaled(updates: Any, factors: Any) -> Any:
    return jax.tree.map(lambda update, factor: update * jnp.asarray(factor, update.dtype), updates, factors)


def _of_trained(inner: optax.GradientTransformation, optim: OptimConfig) -> optax.GradientTransformation:
    """The optimiser of the trained arrays of a whole model."""
    trained = lambda tree: eqx.filter(tree, trainable_mask(optim, tree))
    update: Any = lambda updates, state, params: inner.update(trained(updates), state, trained(params))
    return optax.GradientTransformation(lambda params: inner.init(trained(params)), update)
