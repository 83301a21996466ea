"""The recipes of CLIPA's JAX code: CLIPA (arXiv 2305.07017) and CLIPA-v2 (arXiv 2306.15658).

Both use BERT word pieces, sine-cosine image positions and, in the text tower, the last slot, padding or not. CLIPA
pools the class token of the image, CLIPA-v2 the mean of its patches.
"""

from typing import Literal

from ..config import CLIPConfig, EvalConfig
from ..sizes import clip_size
from ._clipa_jax_stages import (
    ADAM_BF16,
    ADAM_T5X,
    bigg_tune_224,
    mislabelled_pretrain,
    unmasked_tune,
    v1_pretrain,
    v1_tune,
    v2_pretrain,
    v2_tune_224,
    v2_tune_336,
)
from ._recipe import make_hours, make_recipe, make_scores, PublishedHours, PublishedScore, Recipe


_EVAL_V1 = EvalConfig(canonicalize=True)
# Tuning configs squash images to the square; pre-training configs crop. One protocol serves the run: that of its end.
_EVAL_V1_H = EvalConfig(canonicalize=True, resize="squash")
_EVAL_V2 = EvalConfig(canonicalize=True, resize="squash", text_reduction="syntax")

_INFERRED_SAMPLES = (
    "The configs give 7.0 passes over the data; 2.56 G pairs are inferred: 7.0 times the about 366 M pairs that could "
    "be fetched of LAION-400M, or 6.4 times 400 M."
)
_RESIZED_TEXT = (
    "The main branch cannot load 8 text positions into 32; as its t5x branch does, the table is resized linearly."
)
_ONE_PROTOCOL = "Pre-training configs evaluate on centre crops, tuning configs on squashed images: squash throughout."
_T5X_DECAY = (
    "The t5x branch decays all but biases, norms, positions and temperature; decay_set all_but_norms is nearest."
)


def _v1(size: str) -> CLIPConfig:
    return clip_size(size, vision={"pool": "first"})


def _v2(size: str) -> CLIPConfig:
    return clip_size(size, vision={"pool": "mean"})


def _v1_recipe(size: Literal["S", "B", "L"], pixels: int, files: str, *notes: str) -> Recipe:
    return make_recipe(
        f"clipa-{size.lower()}16-{pixels}",
        f"CLIPA {size}/16 at {pixels} px and 32 tokens, tuned at 224 px",
        _v1(f"{size}/16"),
        v1_pretrain(pixels, remat_image="full" if size == "S" else "none"),
        v1_tune(),
        source=files,
        evaluation=_EVAL_V1,
        notes=(_INFERRED_SAMPLES, *notes),
    )


def _v1_recipes() -> list[Recipe]:
    """S, B and L at the input sizes of the paper's study of token counts."""
    small, base, large = (f"clipa_jax/configs/model_{letter}" for letter in "sbl")
    tuned_s = "The main branch has no tuning config for S/16; that of the t5x branch is used."
    tuned_l = "The t5x branch tunes L/16 at half the learning rate; this is the main branch's."
    inferred_l = (
        "Pre-training is inferred: that of B/16 with the towers of L/16. The config under model_l trains an H/14."
    )
    return [
        *(
            _v1_recipe("S", px, f"{small}/{px}_32_pre_training.py; branch t5x: {small}/unmask_tuning.py", tuned_s)
            for px in (64, 112)
        ),
        *(_v1_recipe("B", px, f"{base}/{px}_32_pre_training.py, unmask_tuning.py") for px in (64, 112, 160)),
        *(
            _v1_recipe("L", px, f"inferred pre-training; {large}/unmask_tuning.py", inferred_l, tuned_l)
            for px in (64, 112)
        ),
    ]


def _v1_h_recipes() -> list[Recipe]:
    return [
        make_recipe(
            "clipa-h14-112",
            "CLIPA H/14 at 112 px and 32 tokens, tuned at 224 px",
            _v1("H/14"),
            v1_pretrain(112, remat_image="full"),
            unmasked_tune(ADAM_BF16),
            source="clipa_jax/configs/model_h/112_32_pre_training.py, unmask_tuning.py",
            evaluation=_EVAL_V1_H,
            notes=(
                _INFERRED_SAMPLES,
                "The main branch pre-trains with the class token and tunes with the mean of patches; the t5x branch "
                "keeps the class token, and so does this recipe.",
                "The t5x branch tunes at half the learning rate; this is the main branch's.",
                _ONE_PROTOCOL,
            ),
        ),
        make_recipe(
            "clipa-h14-84",
            "H/14 at 84 px and 8 tokens without colour jitter, tuned at 224 px on all patches",
            _v2("H/14"),
            mislabelled_pretrain(),
            unmasked_tune(ADAM_BF16),
            source="clipa_jax/configs/model_l/64_32_pre_training.py, model_h/unmask_tuning.py",
            evaluation=_EVAL_V1_H,
            notes=(
                "The file's name says L/16 at 64 px and 32 tokens; its content is what is kept.",
                "Its batch of 65336 is read as 65536, and its learning rate and steps follow.",
                "Tuning with the config of the same pool, moments and augmentation is inferred.",
                _RESIZED_TEXT,
                _ONE_PROTOCOL,
            ),
        ),
    ]


def _v2_recipes() -> list[Recipe]:
    notes = (_RESIZED_TEXT, _ONE_PROTOCOL)
    return [
        make_recipe(
            "clipa-v2-l14-84",
            "CLIPA-v2 L/14 at 84 px and 8 tokens, tuned at 224 and 336 px",
            _v2("L/14"),
            v2_pretrain(84),
            v2_tune_224(),
            v2_tune_336(),
            source="inferred: the configs of model_h with L/14",
            evaluation=_EVAL_V2,
            notes=("CLIPA releases this model without a config.", *notes),
            published=make_scores("DataComp-1B", pretrain=72.7, tune_224=79.7, tune_336=80.3),
            published_hours=make_hours(tune_224=4008, tune_336=4520),
        ),
        make_recipe(
            "clipa-v2-h14-84",
            "CLIPA-v2 H/14 at 84 px and 8 tokens, tuned at 224 and 336 px",
            _v2("H/14"),
            v2_pretrain(84),
            v2_tune_224(),
            v2_tune_336(),
            source="clipa_jax/configs/model_h/84_8_pre_training.py, unmask_tuning_224_scheduleX4.py, "
            "unmask_tuning_336_scheduleX1.py",
            evaluation=_EVAL_V2,
            notes=notes,
            published=(
                *make_scores("LAION-2B", pretrain=72.1, tune_224=78.6, tune_336=79.1),
                *make_scores("DataComp-1B", pretrain=75.6, tune_224=81.5, tune_336=81.8),
            ),
            published_hours=make_hours(tune_224=7776, tune_336=8640),
        ),
        make_recipe(
            "clipa-v2-h14-70",
            "CLIPA-v2 H/14 at 70 px and 8 tokens, tuned at 224 px",
            _v2("H/14"),
            v2_pretrain(70),
            v2_tune_224(),
            source="clipa_jax/configs/model_h/70_8_pre_training.py, unmask_tuning_224_scheduleX4.py",
            evaluation=_EVAL_V2,
            notes=notes,
            published=(*make_scores("LAION-2B", pretrain=70.1), *make_scores("DataComp-1B", tune_224=81.1)),
            published_hours=make_hours(tune_224=5920),
        ),
    ]


def _t5x_recipes() -> list[Recipe]:
    """The recipes of the t5x branch: g/14, which its code cannot build, and bigG/14."""
    notes = (_RESIZED_TEXT, _ONE_PROTOCOL, _T5X_DECAY)
    no_g = "The branch's code does not know g/14 and stops with a KeyError, so no result of it exists."
    folder = "branch t5x: clipa_jax/configs"
    g_pretrain = v2_pretrain(70, optim=ADAM_T5X)

    def bigg(
        pixels: int,
        *more_notes: str,
        published: tuple[PublishedScore, ...] = (),
        published_hours: tuple[PublishedHours, ...] = (),
    ) -> Recipe:
        return make_recipe(
            f"clipa-v2-bigg14-{pixels}",
            f"CLIPA-v2 bigG/14 at {pixels} px and 8 tokens, tuned at 224 and 336 px",
            _v2("G/14"),
            # Half the learning rate of the smaller models.
            v2_pretrain(pixels, optim=ADAM_T5X, rate_per_256=4e-6, remat_text="full"),
            bigg_tune_224(),
            v2_tune_336(optim=ADAM_T5X),
            source=f"{folder}/model_bigG/70_8_pre_training.py, unmask_tuning_224_scheduleX4.py, "
            "unmask_tuning_336_scheduleX1.py",
            evaluation=_EVAL_V2,
            notes=(*more_notes, *notes),
            published=published,
            published_hours=published_hours,
        )

    return [
        make_recipe(
            "clipa-v2-g14-70",
            "CLIPA-v2 g/14 at 70 px and 8 tokens, tuned at 224 and 336 px",
            _v2("g/14"),
            g_pretrain,
            v2_tune_224(optim=ADAM_T5X),
            v2_tune_336(optim=ADAM_T5X),
            source=f"{folder}/model_g/70_8_pre_training.py, unmask_tuning_224_scheduleX4.py, "
            "unmask_tuning_336_scheduleX1.py",
            evaluation=_EVAL_V2,
            notes=(no_g, *notes),
        ),
        make_recipe(
            "clipa-v2-g14-70-unmasked",
            "CLIPA-v2 g/14 at 70 px and 8 tokens, tuned at 224 px on all patches",
            _v2("g/14"),
            g_pretrain,
            unmasked_tune(ADAM_T5X),
            source=f"{folder}/model_g/70_8_pre_training.py, unmask_tuning.py; model_bigG/unmask_tuning.py is the same",
            evaluation=_EVAL_V2,
            notes=(no_g, *notes),
        ),
        bigg(70, "The config as it stands; the released model was pre-trained at 84 px."),
        bigg(
            84,
            "The README starts the 70 px config with res=84.",
            "The README of the PyTorch code gives 82.7 after tune-224, by its own protocol.",
            published=make_scores("DataComp-1B", pretrain=78.5, tune_224=82.5, tune_336=83.0),
            published_hours=make_hours(tune_224=21998, tune_336=23742),
        ),
    ]


clipa_jax: list[Recipe] = [*_v1_recipes(), *_v1_h_recipes(), *_v2_recipes(), *_t5x_recipes()]
"""CLIPA, then CLIPA-v2, from small to large."""
