"""The optimiser of a stage, composed from optax: schedule, decay set, AdamW, clipping."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config import DecaySet, OptimConfig
from ..models import CLIP


# Learned vectors that no decay set touches, by the name of their field.
_NEVER_DECAYED = ("bias", "scale", "attention_scale", "mlp_scale", "class_token", "logit_scale", "logit_bias")


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
    frozen = model.config.vision.position == "frozen"

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].name
        if decay_set == "matrices":
            return name == "weight"
        return name not in _NEVER_DECAYED and not (frozen and name == "position" and path[0].name == "vision")

    return jax.tree_util.tree_map_with_path(decays, model)


def make_optimizer(optim: OptimConfig, schedule: optax.Schedule, model: CLIP) -> optax.GradientTransformation:
    """AdamW: clip, Adam's moments, decoupled decay, learning rate, in the order of big_vision and torch's AdamW.

    Args:
        optim: the numbers.
        schedule: learning rate by update.
        model: the model whose arrays the decay set names.
    """
    steps: list[optax.GradientTransformation] = []
    if optim.clip_norm:
        steps.append(optax.clip_by_global_norm(optim.clip_norm))
    steps.append(optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=optim.moment_dtype))
    if optim.weight_decay:
        steps.append(optax.add_decayed_weights(optim.weight_decay, mask=decay_mask(model, optim.decay_set)))
    steps.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*steps)
