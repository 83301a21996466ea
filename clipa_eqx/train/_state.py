"""What training carries from step to step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._types import Key
from ..models import CLIP


class TrainState(eqx.Module):
    """Model, optimiser, average, position and randomness: all that a checkpoint must hold to continue bit for bit."""

    model: CLIP
    opt_state: optax.OptState
    average: CLIP | None
    """Exponential moving average of the trained weights; None where none is kept, and in place of frozen arrays."""
    step: Int[Array, ""]
    """Updates done in this stage."""
    key: Key
    """Root of the stage's randomness; step n draws from `fold_in(key, n)`, so a resumed run replays it."""

    @property
    def averaged_model(self) -> CLIP | None:
        """The model with averaged weights in place of the newest ones; None where no average is kept."""
        return None if self.average is None else eqx.combine(self.average, self.model)


def init_state(
    model: CLIP, optimizer: optax.GradientTransformation, *, averaged: CLIP | None = None, key: Key
) -> TrainState:
    """A state at step 0. The optimiser's moments start at zero, also when the model comes from an earlier stage.

    Args:
        model: the weights to start from.
        optimizer: from `make_optimizer`.
        averaged: the arrays of the model of which an average is kept, None in place of the others; it starts there.
        key: root of the stage's randomness.
    """
    return TrainState(
        model=model,
        opt_state=optimizer.init(eqx.filter(model, eqx.is_array)),
        # A copy: the step gives its buffers back, and cannot give one back twice.
        average=jax.tree.map(jnp.copy, averaged),
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def run_keys(seed: int, num_stages: int) -> tuple[Key, list[Key]]:
    """Split the run's one seed: a key for the initial model, one per stage for its steps."""
    model_key, step_key = jax.random.split(jax.random.key(seed))
    return model_key, [jax.random.fold_in(step_key, stage) for stage in range(num_stages)]
