"""The recipe of the built-in world of captioned scenes: small enough for a laptop's CPU."""

from ..config import AugmentConfig, CLIPConfig, EvalConfig, OptimConfig, TextConfig, VisionConfig
from ._recipe import make_recipe, make_stage, Recipe


_ADAM = OptimConfig(weight_decay=0.2, b1=0.9, b2=0.95)
# Colour is part of what the captions say, and so is left and right: no jitter, no mirror, mild crops.
_AUGMENT = AugmentConfig(crop_area_min=0.8)

world_tiny: Recipe = make_recipe(
    "world-tiny",
    "A tiny CLIP on the built-in captioned scenes, few tokens first",
    CLIPConfig(
        embed=64,
        vision=VisionConfig(patch_size=8, image_size=48, width=128, depth=4, heads=2, hidden=512),
        text=TextConfig(context_length=16, vocab_size=512, width=128, depth=2, heads=2, hidden=512),
    ),
    make_stage(
        "few",
        32,
        8,
        batch_size=256,
        samples=200_000,
        rate_per_256=1e-3,
        warmup_steps=80,
        optim=_ADAM,
        text_reduction="syntax",
        augment=_AUGMENT,
    ),
    make_stage(
        "all", 48, 16, batch_size=256, samples=40_000, rate_per_256=2e-4, warmup_steps=16, optim=_ADAM, augment=_AUGMENT
    ),
    source="this project",
    evaluation=EvalConfig(canonicalize=True, text_reduction="syntax"),
)
