"""What training carries from step to step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._types import Key
from ..models import CLIP


class TrainState(eqx.Module):
    """Model, optimiser, position and randomness: all that a checkpoint must hold to continue bit for bit."""

    model: CLIP
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Updates done in this stage."""
    key: Key
    """Root of the stage's randomness; step n draws from `fold_in(key, n)`, so a resumed run replays it."""


def init_state(model: CLIP, optimizer: optax.GradientTransformation, *, key: Key) -> TrainState:
    """A state at step 0. The optimiser's moments start at zero, also when the model comes from an earlier stage."""
    return TrainState(
        model=model, opt_state=optimizer.init(eqx.filter(model, eqx.is_array)), step=jnp.zeros((), jnp.int32), key=key
    )


def run_keys(seed: int, num_stages: int) -> tuple[Key, list[Key]]:
    """Split the run's one seed: a key for the initial model, one per stage for its steps."""
    model_key, step_key = jax.random.split(jax.random.key(seed))
    return model_key, [jax.random.fold_in(step_key, stage) for stage in range(num_stages)]
