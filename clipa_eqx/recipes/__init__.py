"""Every published CLIPA recipe as data, and what is done with one: look it up, shrink it, make a run of it."""

from ._catalog import get_recipe as get_recipe, recipes as recipes, run_config as run_config
from ._recipe import (
    image_tokens as image_tokens,
    PublishedHours as PublishedHours,
    PublishedScore as PublishedScore,
    Recipe as Recipe,
    text_tokens as text_tokens,
)
from ._scale import scale_recipe as scale_recipe
from ._tune import tune_recipes as tune_recipes, TuneRecipe as TuneRecipe
