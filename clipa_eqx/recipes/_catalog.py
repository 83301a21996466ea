"""Recipes by name, and runs made of them."""

import difflib

from ..config import DataConfig, EvalConfig, RunConfig
from ._clipa_jax import clipa_jax
from ._clipa_torch import clipa_torch
from ._recipe import Recipe
from ._tune import tune_recipes
from ._world import world_tiny


recipes: dict[str, Recipe] = {recipe.name: recipe for recipe in (world_tiny, *clipa_jax, *clipa_torch)}
"""Recipes by name, the smallest first."""


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in recipes:
        return recipes[name]
    if name in tune_recipes:
        raise ValueError(f"The recipe {name!r} takes its model from weights: name them with --init-from.")
    near = difflib.get_close_matches(name.lower(), [*recipes, *tune_recipes], n=3, cutoff=0.6)
    if near:
        raise ValueError(f"There is no recipe {name!r}; nearest: {', '.join(near)}.")
    raise ValueError(f"There is no recipe {name!r}; there are: {', '.join([*recipes, *tune_recipes])}.")


def run_config(recipe: Recipe, *, data: DataConfig, evaluation: EvalConfig | None = None, seed: int = 0) -> RunConfig:
    """A run of a recipe on the user's data.

    Args:
        recipe: the recipe.
        data: training pairs and vocabulary.
        evaluation: what is measured and how; none: the recipe's protocol, on no set.
        seed: the one seed of the run, 0 to 2**32 - 1.

    Raises:
        ValueError: the seed is out of range.
    """
    return RunConfig(
        model=recipe.model,
        stages=recipe.stages,
        data=data,
        evaluation=recipe.evaluation if evaluation is None else evaluation,
        recipe=recipe.name,
        seed=seed,
    )
