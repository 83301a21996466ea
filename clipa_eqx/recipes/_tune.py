"""Recipes that start from weights: the model is theirs, the length is that of the data at hand."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ..config import AugmentConfig, CLIPConfig, EvalConfig, OptimConfig, RateConfig, StageConfig
from ._recipe import make_recipe, Recipe


@dataclass(frozen=True)
class TuneRecipe:
    """A stage for given weights."""

    name: str
    """Name under which it is looked up."""
    title: str
    """One line on what it trains."""
    epochs: float
    """Passes over the data, where the user does not say."""
    batch_size: int
    """Pairs per step, on data of at least that many pairs."""
    stage: Callable[[int, int], StageConfig]
    """The stage for a number of steps and a batch, but for samples and sizes."""
    source: str
    """Where its numbers come from."""

    def recipe(
        self, model: CLIPConfig, *, pairs: int, epochs: float | None = None, evaluation: EvalConfig | None = None
    ) -> Recipe:
        """The recipe for a model and so many pairs.

        Args:
            model: the model of the weights; its image size and context length stay.
            pairs: captioned pictures at hand, at least 1.
            epochs: passes over them; none: the recipe's own.
            evaluation: how pictures come to the model, whose kernel is that of training too; none: the default.

        Raises:
            ValueError: no pairs, or no passes.
        """
        epochs = self.epochs if epochs is None else epochs
        if pairs < 1 or not 0 < epochs < float("inf"):
            raise ValueError(f"{self.name} needs pairs to train on and passes over them, got {pairs} and {epochs}.")
        evaluation = evaluation or EvalConfig()
        # A power of two, so that it splits over the usual numbers of devices.
        batch = min(self.batch_size, 1 << (pairs.bit_length() - 1))
        samples = max(1, round(pairs * epochs))
        stage = self.stage(-(-samples // batch), batch)
        stage = dataclasses.replace(
            stage,
            samples=samples,
            batch_size=batch,
            image_size=model.vision.image_size,
            text_length=model.text.context_length,
            loss="softmax" if model.init_logit_bias is None else "sigmoid",
            augment=dataclasses.replace(stage.augment, interpolation=evaluation.interpolation),
        )
        return make_recipe(self.name, self.title, model, stage, source=self.source, evaluation=evaluation)


def _fine_tune(steps: int, batch: int) -> StageConfig:
    del batch
    return StageConfig(
        name="fine-tune",
        logit_scale_max=100.0,
        augment=AugmentConfig(crop_area_min=0.9, crop_aspect_max=1.1),
        optim=OptimConfig(
            learning_rate=1e-5,
            warmup_steps=steps // 10,
            weight_decay=0.05,
            b2=0.98,
            eps=1e-6,
            clip_norm=1.0,
            image_layer_decay=0.75,
            text_layer_decay=0.75,
        ),
        position_transfer="resample",
    )


def _lit(steps: int, batch: int) -> StageConfig:
    optim = OptimConfig(
        learning_rate=1e-3 * min(1.0, batch / 4096),
        warmup_steps=steps // 10,
        weight_decay=1e-4,
        clip_norm=1.0,
        rates=(RateConfig("vision.*", 0.0),),
    )
    return StageConfig(name="lit", optim=optim, position_transfer="resample")


def _unmask(steps: int, batch: int) -> StageConfig:
    optim = OptimConfig(learning_rate=4e-7 * batch / 256, warmup_steps=steps // 10, weight_decay=0.2)
    return StageConfig(name="unmask", optim=optim, position_transfer="resample")


tune_recipes: dict[str, TuneRecipe] = {
    recipe.name: recipe
    for recipe in (
        TuneRecipe(
            "fine-tune",
            "Tune all of a model on one's own pairs: few samples, a small rate, less of it below",
            epochs=5.0,
            batch_size=256,
            stage=_fine_tune,
            source="rate, betas and decay by layers of Dong et al., arXiv 2212.06138, table 1, for a contrastive loss",
        ),
        TuneRecipe(
            "lit",
            "Train the text side to an image tower that stays as it is",
            epochs=10.0,
            batch_size=4096,
            stage=_lit,
            source="Zhai et al., arXiv 2111.07991; rate and decay of big_vision's siglip_lit_coco.py",
        ),
        TuneRecipe(
            "unmask",
            "CLIPA's tuning of a few-token model on all tokens",
            epochs=1.0,
            batch_size=16384,
            stage=_unmask,
            source="CLIPA-JAX, the unmasked tuning of v2: 4e-7 for 256 pairs, weight decay 0.2",
        ),
    )
}
"""Recipes for given weights, by name."""
