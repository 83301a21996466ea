"""What a recipe is."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..config import CLIPConfig, EvalConfig, OptimConfig, StageConfig


@dataclass(frozen=True)
class PublishedScore:
    """A zero-shot result that the original project printed for this recipe."""

    stage: str
    """Name of the stage after which it was measured."""
    data: str
    """What the project trained on."""
    top1: float
    """ImageNet-1k top-1 in percent, as the project's README gives it."""


@dataclass(frozen=True)
class PublishedHours:
    """What the original project says that this recipe took."""

    stage: str
    """Name of the stage after which it was counted."""
    gpu_hours: float
    """Hours of one A100 with 80 GB, with all stages before, as the project's README gives them."""


@dataclass(frozen=True)
class Recipe:
    """A model and the stages that train it, with their source."""

    name: str
    """Name under which it is looked up."""
    title: str
    """One line on what it trains."""
    model: CLIPConfig
    """The model, with the image size and the text length of the last stage."""
    stages: tuple[StageConfig, ...]
    """Stages in order."""
    source: str
    """Files of the original project; "inferred" where none says it."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """How the original project measures it; the sets are the user's."""
    notes: tuple[str, ...] = ()
    """What was decided where the sources are wrong, disagree or are silent."""
    published: tuple[PublishedScore, ...] = ()
    """What the original project reports; another protocol or other data give other numbers."""
    published_hours: tuple[PublishedHours, ...] = ()
    """What the original project says that it took."""


def make_recipe(name: str, title: str, model: CLIPConfig, *stages: StageConfig, **fields: Any) -> Recipe:
    """A recipe whose model has the sizes of its last stage."""
    last = stages[-1]
    vision = dataclasses.replace(model.vision, image_size=last.image_size)
    text = dataclasses.replace(model.text, context_length=last.text_length)
    return Recipe(name, title, dataclasses.replace(model, vision=vision, text=text), stages, **fields)


def make_scores(data: str, **top1: float) -> tuple[PublishedScore, ...]:
    """Scores of one data set by stage, an underscore for the hyphen in its name."""
    return tuple(PublishedScore(stage.replace("_", "-"), data, score) for stage, score in top1.items())


def make_hours(**gpu_hours: float) -> tuple[PublishedHours, ...]:
    """Hours by stage, an underscore for the hyphen in its name."""
    return tuple(PublishedHours(stage.replace("_", "-"), hours) for stage, hours in gpu_hours.items())


def make_stage(
    name: str,
    image_size: int,
    text_length: int,
    *,
    batch_size: int,
    samples: int,
    rate_per_256: float,
    warmup_steps: int,
    optim: OptimConfig,
    keep_patches: int = 0,
    **fields: Any,
) -> StageConfig:
    """A stage by CLIPA's rule: the peak learning rate is `rate_per_256` times the batch over 256.

    With `keep_patches` above 0 that many patches are drawn at random.
    """
    return StageConfig(
        name=name,
        image_size=image_size,
        text_length=text_length,
        batch_size=batch_size,
        samples=samples,
        image_reduction="random" if keep_patches else "none",
        keep_patches=keep_patches,
        optim=dataclasses.replace(optim, learning_rate=rate_per_256 * batch_size / 256, warmup_steps=warmup_steps),
        **fields,
    )


def image_tokens(model: CLIPConfig, stage: StageConfig) -> int:
    """Tokens that the image tower sees in a stage: patches that are kept, and the class token where there is one."""
    patches = stage.keep_patches or (stage.image_size // model.vision.patch_size) ** 2
    return patches + model.vision.class_token


def text_tokens(stage: StageConfig) -> int:
    """Tokens that the text tower sees in a stage, padding included."""
    return stage.text_length
