"""The recipe of the built-in world of captioned scenes: small enough for a laptop's CPU."""

from ..config import AugmentConfig, CLIPConfig, EvalConfig, OptimConfig, TextConfig, VisionConfig
from ._recipe import make_recipe, make_stage, Recipe


# Clipping tames the steep start of so small a batch.
_ADAM = OptimConfig(weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0)
# Colour is part of what the captions say, and so is left and right: no jitter, no mirror, mild crops.
_AUGMENT = AugmentConfig(crop_area_min=0.9, crop_aspect_max=1.1)

world_tiny: Recipe = make_recipe(
    "world-tiny",
    "A tiny CLIP on the built-in captioned scenes, few tokens first",
    # Of CLIPA's form (class token, mean of patches, last text slot), so that open_clip can run the result.
    CLIPConfig(
        embed=64,
        # gelu_quick is the cheapest of the three on a CPU, where at this width it costs as much as a matrix product.
        vision=VisionConfig(
            image_size=48,
            patch_size=8,
            width=128,
            depth=4,
            heads=4,
            hidden=512,
            # A grid of 3 x 3 says little about one of 6 x 6: a stored table is stretched, where coordinates that go on
            # beyond the smaller grid would be new to the model.
            position="frozen",
            activation="gelu_quick",
        ),
        text=TextConfig(
            context_length=16,
            vocab_size=512,
            width=96,
            depth=2,
            heads=3,
            hidden=384,
            activation="gelu_quick",
        ),
    ),
    make_stage(
        "few",
        24,
        8,
        batch_size=128,
        samples=200_000,
        rate_per_256=4e-3,
        warmup_steps=100,
        optim=_ADAM,
        text_reduction="syntax",
        logit_scale_max=100.0,
        augment=_AUGMENT,
    ),
    make_stage(
        "all",
        48,
        16,
        batch_size=128,
        samples=32_000,
        rate_per_256=2e-3,
        warmup_steps=20,
        optim=_ADAM,
        logit_scale_max=100.0,
        augment=_AUGMENT,
        position_transfer="resample",
    ),
    source="this project",
    evaluation=EvalConfig(text_reduction="syntax"),
)
