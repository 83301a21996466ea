"""The recipes of CLIPA's PyTorch code, under clipa_torch/scripts/exp: OpenAI's text tower, byte pairs, MAE positions.

They share open_clip's training loop: warmup begins above 0, the inverse temperature stays below 100, decay reaches
embeddings and tables, crops are resized with a bicubic kernel.
"""

from typing import Any, Literal

from ..config import AugmentConfig, CLIPConfig, EvalConfig, OPENAI_MEAN, OPENAI_STD, OptimConfig, StageConfig
from ..sizes import clip_size
from ._recipe import make_recipe, make_scores, make_stage, PublishedScore, Recipe


_ADAM = OptimConfig(weight_decay=0.2, b1=0.9, b2=0.95, eps=1e-6, warmup_first="fraction", decay_set="all_but_norms")
_PLAIN = AugmentConfig(interpolation="bicubic")
_JITTER = AugmentConfig(interpolation="bicubic", jitter=0.4)

# 6 passes over the about 366 M pairs that could be fetched of LAION-400M (inferred).
_LAION_SAMPLES = 6 * 366_000_000
# 10 passes over the 1.28 G pairs of DataComp-1B (inferred).
_DATACOMP_SAMPLES = 12_800_000_000
_TUNE_SAMPLES = 131_072_000

_FROZEN_TABLE = (
    "Tuning at 224 px makes the position table trainable; here the table stays fixed, and moves to the larger grid by "
    "the same bicubic resize."
)
_INFERRED_LAION = (
    "The scripts give 6 passes over the data; 2.196 G pairs are inferred: about 366 M could be fetched of LAION-400M."
)


def _stage(name: str, image_size: int, text_length: int, **fields: Any) -> StageConfig:
    return make_stage(
        name,
        image_size,
        text_length,
        optim=_ADAM,
        logit_scale_max=100.0,
        position_transfer="resample",
        remat_image="full",
        remat_text="full",
        **fields,
    )


def _model(size: str, pool: Literal["first", "mean_all"]) -> CLIPConfig:
    """open_clip's towers: an input norm, exact GELU, torch's epsilon, OpenAI's pixel statistics."""
    common = {"activation": "gelu", "norm_eps": 1e-5}
    pixels = {"pixel_mean": OPENAI_MEAN, "pixel_std": OPENAI_STD}
    return clip_size(
        size,
        vision={"pool": pool, "position": "frozen", "input_norm": True, **common, **pixels},
        text={"vocab_size": 49_408, "causal": True, "pool": "end", "end_id": 49_407, **common},
    )


def _l16(
    name: str,
    title: str,
    pretrain: StageConfig,
    tuned_length: int,
    *notes: str,
    source: str,
    published: tuple[PublishedScore, ...],
) -> Recipe:
    return make_recipe(
        name,
        title,
        _model("L/16", "mean_all"),
        pretrain,
        _stage(
            "tune-224",
            224,
            tuned_length,
            batch_size=7168,  # 8 x 896
            samples=_TUNE_SAMPLES,
            rate_per_256=8e-7,
            warmup_steps=3571,
            augment=_JITTER,
        ),
        source=source,
        evaluation=EvalConfig(interpolation="bicubic", text_reduction="syntax"),
        notes=(_INFERRED_LAION, _FROZEN_TABLE, *notes),
        published=published,
    )


def _l16_pretrain(image_size: int, text_length: int) -> StageConfig:
    return _stage(
        "pretrain",
        image_size,
        text_length,
        batch_size=32_768,
        samples=_LAION_SAMPLES,
        rate_per_256=8e-6,
        warmup_steps=1563,
        text_reduction="syntax",
        augment=_JITTER,
    )


def _b16() -> Recipe:
    return make_recipe(
        "clipa-torch-b16-i50-t16",
        "CLIPA B/16 at 112 px and 16 tokens, tuned at 224 px",
        _model("B/16", "first"),
        _stage(
            "pretrain",
            112,
            16,
            batch_size=65_536,
            samples=_LAION_SAMPLES,
            rate_per_256=8e-6,
            warmup_steps=782,
            augment=_PLAIN,
        ),
        _stage(
            "tune-224",
            224,
            16,
            batch_size=8192,
            samples=_TUNE_SAMPLES,
            rate_per_256=8e-7,
            warmup_steps=3072,
            augment=_PLAIN,
        ),
        source="clipa_torch/scripts/exp/{gpu,tpu}/vit_b16/i50_t16_pretrain.sh, i50_t16_finetune.sh",
        evaluation=EvalConfig(interpolation="bicubic"),
        notes=(_INFERRED_LAION, _FROZEN_TABLE),
        published=make_scores("LAION-400M", pretrain=59.7, tune_224=63.2),
    )


def _h14() -> Recipe:
    return make_recipe(
        "clipa-torch-h14-i36-t8",
        "CLIPA-v2 H/14 at 84 px and 8 tokens with byte pairs, tuned at 224 and 336 px",
        _model("H/14", "mean_all"),
        _stage(
            "pretrain",
            84,
            8,
            batch_size=65_536,
            samples=_DATACOMP_SAMPLES,
            rate_per_256=8e-6,
            # The script has 782. The JAX config of the same run has 3200 and says that less collapses.
            warmup_steps=3200,
            text_reduction="syntax",
            augment=_JITTER,
        ),
        _stage(
            "tune-224",
            224,
            32,
            batch_size=32_768,
            samples=524_288_000,
            rate_per_256=4e-7,
            warmup_steps=800,
            keep_patches=179,  # 0.7 of 256
            augment=_JITTER,
        ),
        _stage(
            "tune-336",
            336,
            32,
            batch_size=16_384,
            samples=_TUNE_SAMPLES,
            rate_per_256=1e-7,
            warmup_steps=1600,
            keep_patches=345,  # 0.6 of 576
            augment=_JITTER,
        ),
        source="clipa_torch/scripts/exp/tpu/vit_h14/i36_t8_pretrain.sh, i36_t8_finetune224.sh, i36_t8_finetune336.sh",
        # The scripts that test CLIPA-v2 squash with a bilinear kernel, unlike those of CLIPA.
        evaluation=EvalConfig(resize="squash", text_reduction="syntax"),
        notes=(
            "An example, says the script: CLIPA-v2 itself was trained by the JAX code.",
            "The script gives 10 passes over DataComp-1B; 12.8 G pairs are inferred.",
            "Warmup is 3200 steps as in the JAX config, not the script's 782.",
            "The script names ViT-H-14-CL8-Syntax-GAP; the file is ViT-H-14-CL8-SyntaxMask-GAP.",
        ),
    )


clipa_torch: list[Recipe] = [
    _b16(),
    _l16(
        "clipa-torch-l16-i17-t16",
        "CLIPA L/16 at 64 px and 16 tokens, tuned at 224 px",
        _l16_pretrain(64, 16),
        16,
        "The tuning script names ViT-L-16-CL16-GAP, which does not exist; it is read as the pre-trained model with "
        "truncated text.",
        source="clipa_torch/scripts/exp/gpu/vit_l16/i17_t16_pretrain.sh, i17_t16_finetune.sh",
        published=make_scores("LAION-400M", pretrain=60.3, tune_224=67.8),
    ),
    _l16(
        "clipa-torch-l16-i37-t8",
        "CLIPA L/16 at 96 px and 8 tokens, tuned at 224 px and 32 tokens",
        _l16_pretrain(96, 8),
        32,
        source="clipa_torch/scripts/exp/gpu/vit_l16/i37_t8_pretrain.sh, i37_t8_finetune.sh",
        published=make_scores("LAION-400M", pretrain=57.9, tune_224=69.3),
    ),
    _h14(),
]
"""Names count image tokens as the scripts do: with the class token for /16, without it for H/14."""
