"""Optimisers of optax by name, as what they turn a gradient into before decay and learning rate."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config import OptimConfig


def scale_by(optim: OptimConfig) -> optax.GradientTransformation:
    """The direction of an optimiser, with rate 1 and no decay.

    - adamw: `optax.scale_by_adam`.
    - adafactor: as big_vision has it (optax.py, `scale_by_adafactor`): the second moment of each matrix by rows and
      columns from a side of 32 on, its decay `1 - t^-0.8` up to `beta2_cap`, then a momentum kept in bfloat16.
    - muon: `optax.contrib.muon`, each matrix of stacked blocks by itself; other arrays by its AdamW.
    - another name: the optimiser of `optax`, or `optax.contrib`.

    Raises:
        ValueError: optax has none of that name, or it does not take an argument that is given.
    """
    if optim.name == "adamw":
        return _made(optax.scale_by_adam, optim)
    if optim.name == "adafactor":
        return _made(_adafactor, optim)
    alias: Any = getattr(optax, optim.name, None) or getattr(optax.contrib, optim.name, None)
    if not inspect.isfunction(alias) or "learning_rate" not in inspect.signature(alias).parameters:
        raise ValueError(
            f"optim.name={optim.name!r} is no optimiser: use adamw, lion, adafactor, muon, or the name of another one "
            "of optax's."
        )
    fixed: dict[str, Any] = {"learning_rate": 1.0}
    # The decay is this package's own: it knows the decay sets.
    fixed |= {
        name: 0.0 for name in ("weight_decay", "adam_weight_decay") if name in inspect.signature(alias).parameters
    }
    if optim.name == "muon":
        fixed |= {"muon_weight_dimension_numbers": _matrices, "adam_b1": optim.b1, "adam_b2": optim.b2}
    # It descends by itself, at rate 1; the rate that follows descends again.
    return optax.chain(_made(alias, optim, **fixed), optax.scale(-1.0))


def _made(
    optimizer: Callable[..., optax.GradientTransformation], optim: OptimConfig, **fixed: Any
) -> optax.GradientTransformation:
    """An optimiser with the fields and the arguments that it takes.

    Raises:
        ValueError: it does not take one of the arguments.
    """
    takes = inspect.signature(optimizer).parameters
    fields = {"b1": optim.b1, "b2": optim.b2, "eps": optim.eps, "mu_dtype": optim.moment_dtype}
    given = {argument.name: argument.value for argument in optim.arguments}
    unknown = sorted(name for name in given if name not in takes or name in fixed)
    if unknown:
        free = ", ".join(name for name in takes if name not in fixed)
        raise ValueError(f"optim.arguments names {', '.join(unknown)}; {optim.name} takes {free}.")
    typed = {name: _like(takes[name].default, value) for name, value in given.items()}
    return optimizer(**{name: value for name, value in fields.items() if name in takes} | fixed | typed)


def _like(default: Any, value: float) -> Any:
    """A number in the type of an argument's default."""
    return type(default)(value) if isinstance(default, bool | int) else value


def _adafactor(
    min_dim_size_to_factor: int = 32,
    decay_rate: float = 0.8,
    beta2_cap: float = 0.999,
    epsilon: float = 1e-30,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    def decay(step: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=min_dim_size_to_factor, decay_rate=decay_rate, epsilon=epsilon, decay_rate_fn=decay
    )
    return optax.chain(factored, optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16))


def _matrices(params: Any) -> Any:
    """The axes that Muon makes orthogonal, for weights of linear layers; None for other arrays."""

    def axes(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if getattr(path[-1], "name", None) != "weight" or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
