"""The stages that the recipes of CLIPA's JAX code are made of.

Numbers are those of its configs, under clipa_jax/configs, as they evaluate: Adam with b1 0.9 and b2 0.95, weight decay
0.2, a cosine to 0, crops of at least 40 % of the image, learning rates given per 256 pairs.
"""

import dataclasses

from ..config import AugmentConfig, OptimConfig, Remat, StageConfig
from ._recipe import make_stage


_ADAM = OptimConfig(weight_decay=0.2, b1=0.9, b2=0.95)
ADAM_BF16 = dataclasses.replace(_ADAM, moment_dtype="bfloat16")
# The t5x branch decays embeddings and the class token, but no position table. all_but_norms is nearest: it takes the
# text's position table instead of the class token.
ADAM_T5X = dataclasses.replace(ADAM_BF16, decay_set="all_but_norms")

_JITTER = AugmentConfig(jitter=0.4)

# 7.0 passes over a LAION-400M of which about 366 M pairs could be fetched: 6.4 times 400 M, 78125 steps (inferred).
_V1_SAMPLES = 2_560_000_000
_V2_SAMPLES = 195_490 * 65_536
"""The whole steps in 10000 times the 1281167 images of ImageNet, CLIPA's unit of time: 12.8 G pairs."""


def v1_pretrain(image_size: int, *, remat_image: Remat = "none") -> StageConfig:
    return make_stage(
        "pretrain",
        image_size,
        32,
        batch_size=32_768,
        samples=_V1_SAMPLES,
        rate_per_256=8e-6,
        warmup_steps=1600,
        optim=_ADAM,
        remat_image=remat_image,
    )


def v1_tune() -> StageConfig:
    return make_stage(
        "tune-224",
        224,
        32,
        batch_size=32_768,
        samples=4000 * 32_768,
        rate_per_256=8e-7,
        warmup_steps=800,
        optim=_ADAM,
        remat_image="full",
    )


def unmasked_tune(optim: OptimConfig) -> StageConfig:
    """model_h/unmask_tuning: the pairs and the warmup of v1's tuning at half its batch."""
    return make_stage(
        "tune-224",
        224,
        32,
        batch_size=16_384,
        samples=8000 * 16_384,
        rate_per_256=8e-7,
        warmup_steps=1600,
        optim=optim,
        remat_image="full",
        remat_text="full",
    )


def v2_pretrain(
    image_size: int, *, optim: OptimConfig = ADAM_BF16, rate_per_256: float = 8e-6, remat_text: Remat = "none"
) -> StageConfig:
    return make_stage(
        "pretrain",
        image_size,
        8,
        batch_size=65_536,
        samples=_V2_SAMPLES,
        rate_per_256=rate_per_256,
        # The config adds that a smaller warmup collapses.
        warmup_steps=3200,
        optim=optim,
        text_reduction="syntax",
        augment=_JITTER,
        remat_image="full",
        remat_text=remat_text,
    )


def v2_tune_224(
    *,
    optim: OptimConfig = ADAM_BF16,
    batch_size: int = 32_768,
    keep_patches: int = 179,  # 0.7 of 256
    warmup_steps: int = 800,
) -> StageConfig:
    return make_stage(
        "tune-224",
        224,
        32,
        batch_size=batch_size,
        samples=16_000 * 32_768,
        rate_per_256=4e-7,
        warmup_steps=warmup_steps,
        optim=optim,
        keep_patches=keep_patches,
        augment=_JITTER,
        remat_image="full",
        remat_text="full",
    )


def v2_tune_336(*, optim: OptimConfig = ADAM_BF16) -> StageConfig:
    return make_stage(
        "tune-336",
        336,
        32,
        batch_size=16_384,
        samples=8000 * 16_384,
        rate_per_256=1e-7,
        warmup_steps=1600,
        optim=optim,
        keep_patches=345,  # 0.6 of 576
        augment=_JITTER,
        remat_image="full",
        remat_text="full",
    )


def bigg_tune_224() -> StageConfig:
    """Half the batch of H/14 at the same rate per 256, 0.6 of the patches instead of 0.7, and no warmup at all."""
    return v2_tune_224(optim=ADAM_T5X, batch_size=16_384, keep_patches=153, warmup_steps=0)


def mislabelled_pretrain() -> StageConfig:
    """model_l/64_32_pre_training: in spite of its name an H/14 at 84 px and 8 tokens, without jitter."""
    stage = v2_pretrain(84)
    return dataclasses.replace(stage, augment=AugmentConfig(), optim=dataclasses.replace(stage.optim, warmup_steps=802))
