"""Recipes: the published numbers, the decided traps, shrinking, and that each one runs and builds."""

import dataclasses
import functools
import json
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from clipa_eqx.config import check_run, config_from_json, config_to_json, DataConfig, EvalConfig, RunConfig, stage_model
from clipa_eqx.models import count_parameters, make_clip, presets, transfer
from clipa_eqx.recipes import get_recipe, image_tokens, recipes, run_config, scale_recipe, text_tokens
from clipa_eqx.sizes import clip_size, EMBED, text_size, vision_size


DATA = DataConfig(train="pairs", tokenizer="vocab.txt")
BY_CLIPA = [name for name in recipes if name.startswith("clipa-")]
FACTORS = [Fraction(1, 2), 0.1, Fraction(1, 16), Fraction(1, 256), Fraction(1, 65536)]

# px, image tokens with the class token, text tokens, batch, learning rate, warmup, steps: as the configs evaluate.
STAGES = {
    "clipa-s16-64": [(64, 17, 32, 32768, 1.024e-3, 1600, 78125), (224, 197, 32, 32768, 1.024e-4, 800, 4000)],
    "clipa-b16-112": [(112, 50, 32, 32768, 1.024e-3, 1600, 78125), (224, 197, 32, 32768, 1.024e-4, 800, 4000)],
    "clipa-b16-160": [(160, 101, 32, 32768, 1.024e-3, 1600, 78125), (224, 197, 32, 32768, 1.024e-4, 800, 4000)],
    "clipa-h14-112": [(112, 65, 32, 32768, 1.024e-3, 1600, 78125), (224, 257, 32, 16384, 5.12e-5, 1600, 8000)],
    "clipa-h14-84": [(84, 37, 8, 65536, 2.048e-3, 802, 195490), (224, 257, 32, 16384, 5.12e-5, 1600, 8000)],
    "clipa-v2-h14-70": [(70, 26, 8, 65536, 2.048e-3, 3200, 195490), (224, 180, 32, 32768, 5.12e-5, 800, 16000)],
    "clipa-v2-h14-84": [
        (84, 37, 8, 65536, 2.048e-3, 3200, 195490),
        (224, 180, 32, 32768, 5.12e-5, 800, 16000),
        (336, 346, 32, 16384, 6.4e-6, 1600, 8000),
    ],
    "clipa-v2-bigg14-84": [
        (84, 37, 8, 65536, 1.024e-3, 3200, 195490),
        (224, 154, 32, 16384, 2.56e-5, 0, 32000),
        (336, 346, 32, 16384, 6.4e-6, 1600, 8000),
    ],
    "clipa-torch-b16-i50-t16": [(112, 50, 16, 65536, 2.048e-3, 782, 33509), (224, 197, 16, 8192, 2.56e-5, 3072, 16000)],
    "clipa-torch-l16-i37-t8": [(96, 37, 8, 32768, 1.024e-3, 1563, 67017), (224, 197, 32, 7168, 2.24e-5, 3571, 18286)],
    "clipa-torch-h14-i36-t8": [
        (84, 37, 8, 65536, 2.048e-3, 3200, 195313),
        (224, 180, 32, 32768, 5.12e-5, 800, 16000),
        (336, 346, 32, 16384, 6.4e-6, 1600, 8000),
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_original_configs(name):
    recipe = recipes[name]
    for stage, expected in zip(recipe.stages, STAGES[name], strict=True):
        sizes = (stage.image_size, image_tokens(recipe.model, stage), text_tokens(stage), stage.batch_size)
        optim = (pytest.approx(stage.optim.learning_rate, rel=1e-6), stage.optim.warmup_steps, stage.steps)
        assert (*sizes, *optim) == expected


def test_every_published_row_has_a_recipe():
    assert list(recipes) == [
        "world-tiny",
        *("clipa-s16-64", "clipa-s16-112", "clipa-b16-64", "clipa-b16-112", "clipa-b16-160"),
        *("clipa-l16-64", "clipa-l16-112", "clipa-h14-112", "clipa-h14-84"),
        *("clipa-v2-l14-84", "clipa-v2-h14-84", "clipa-v2-h14-70"),
        *("clipa-v2-g14-70", "clipa-v2-g14-70-unmasked", "clipa-v2-bigg14-70", "clipa-v2-bigg14-84"),
        *("clipa-torch-b16-i50-t16", "clipa-torch-l16-i17-t16", "clipa-torch-l16-i37-t8", "clipa-torch-h14-i36-t8"),
    ]


@pytest.mark.parametrize("recipe", recipes.values(), ids=recipes)
def test_every_recipe_runs_and_survives_json(recipe):
    config = run_config(recipe, data=DATA, seed=3)
    check_run(config, num_devices=8, num_processes=2)
    check_run(config, num_devices=64)
    assert config_from_json(RunConfig, json.loads(json.dumps(config_to_json(config)))) == config
    assert (config.recipe, config.seed, config.evaluation) == (recipe.name, 3, recipe.evaluation)
    last = recipe.stages[-1]
    assert (recipe.model.vision.image_size, recipe.model.text.context_length) == (last.image_size, last.text_length)
    assert recipe.source
    assert all(score.stage in {stage.name for stage in recipe.stages} for score in recipe.published)


@pytest.mark.parametrize("recipe", recipes.values(), ids=recipes)
def test_every_recipe_builds_and_moves_from_stage_to_stage(recipe):
    config = run_config(recipe, data=DATA)
    first, *later = recipe.stages
    model = eqx.filter_eval_shape(make_clip, stage_model(config, first), key=jax.random.key(0))
    for stage in later:
        move = functools.partial(transfer, config=stage_model(config, stage), image_positions=stage.position_transfer)
        model = eqx.filter_eval_shape(move, model)
    finished = eqx.filter_eval_shape(make_clip, recipe.model, key=jax.random.key(0))
    assert jax.tree.structure(model) == jax.tree.structure(finished)
    assert jax.tree.map(jnp.shape, model) == jax.tree.map(jnp.shape, finished)


@pytest.mark.parametrize("name", BY_CLIPA)
def test_learning_rates_follow_the_rule_per_256(name):
    allowed = {8e-6, 4e-6, 8e-7, 4e-7, 1e-7}
    for stage in recipes[name].stages:
        per_256 = stage.optim.learning_rate * 256 / stage.batch_size
        assert any(per_256 == pytest.approx(rate) for rate in allowed)


def test_what_no_source_says_is_called_inferred():
    assert recipes["clipa-v2-l14-84"].source.startswith("inferred")
    assert recipes["clipa-l16-64"].source.startswith("inferred")
    # Passes over a data set are turned into pairs.
    for name, recipe in recipes.items():
        in_passes = name.startswith(("clipa-torch", "clipa-s16", "clipa-b16", "clipa-l16")) or name == "clipa-h14-112"
        assert in_passes == any("passes over" in note and "inferred" in note for note in recipe.notes)


def test_wrong_and_contradictory_settings_are_decided():
    batches = {stage.batch_size for recipe in recipes.values() for stage in recipe.stages}
    assert 65336 not in batches  # a typo in model_l/64_32
    assert any("65336" in note for note in recipes["clipa-h14-84"].notes)
    assert any("782" in note for note in recipes["clipa-torch-h14-i36-t8"].notes)
    assert any("does not exist" in note for note in recipes["clipa-torch-l16-i17-t16"].notes)
    assert recipes["clipa-h14-112"].model.vision.pool == "first"
    assert recipes["clipa-h14-84"].stages[0].augment.jitter == 0


def test_scores_are_only_those_that_the_projects_print():
    scores = {(name, s.stage, s.data): s.top1 for name, recipe in recipes.items() for s in recipe.published}
    assert scores["clipa-v2-h14-84", "tune-336", "DataComp-1B"] == 81.8
    assert scores["clipa-v2-h14-70", "tune-224", "DataComp-1B"] == 81.1
    assert scores["clipa-torch-l16-i37-t8", "tune-224", "LAION-400M"] == 69.3
    printed = {70.1, 72.1, 78.6, 79.1, 72.7, 79.7, 80.3, 75.6, 81.1, 81.5, 81.8, 78.5, 82.5, 83.0}
    printed |= {59.7, 63.2, 60.3, 67.8, 57.9, 69.3}
    assert set(scores.values()) == printed


def test_jax_and_torch_recipes_differ_where_the_projects_do():
    for name in BY_CLIPA:
        recipe, torch = recipes[name], name.startswith("clipa-torch")
        vision, text = recipe.model.vision, recipe.model.text
        assert (vision.activation, text.norm_eps) == (("gelu", 1e-5) if torch else ("gelu_tanh", 1e-6))
        assert (vision.input_norm, text.causal, text.pool == "end", text.end_id >= 0) == (torch,) * 4
        assert text.vocab_size == (49408 if torch else 32000)
        assert not vision.patch_bias
        assert vision.position == ("frozen" if torch else "sincos2d")
        assert recipe.evaluation.canonicalize != torch
        for stage in recipe.stages:
            assert stage.optim.warmup_first == ("fraction" if torch else "zero")
            assert (stage.logit_scale_max == 100) == torch
            assert stage.augment.interpolation == ("bicubic" if torch else "bilinear")
            assert stage.position_transfer == ("resample" if torch else "remake")
            t5x = "g14" in name
            assert stage.optim.decay_set == ("all_but_norms" if torch or t5x else "matrices")
            bf16 = "v2" in name or name == "clipa-h14-84" or (name == "clipa-h14-112" and stage.name == "tune-224")
            assert stage.optim.moment_dtype == ("bfloat16" if bf16 else "float32")


@pytest.mark.parametrize("factor", FACTORS)
def test_shrinking_keeps_the_rules(factor):
    for recipe in recipes.values():
        small = scale_recipe(recipe, factor)
        assert (small.model, small.name, small.published) == (recipe.model, recipe.name, ())
        check_run(run_config(small, data=DATA), num_devices=8)
        check_run(run_config(small, data=DATA), num_devices=64)
        for stage, least in zip(recipe.stages, small.stages, strict=True):
            assert least.optim.learning_rate / least.batch_size == pytest.approx(
                stage.optim.learning_rate / stage.batch_size
            )
            assert least.batch_size % 64 == 0
            assert least.batch_size <= stage.batch_size
            if least.batch_size > 64:
                assert least.batch_size == pytest.approx(stage.batch_size * factor**0.5, abs=32)
            warmup = stage.optim.warmup_steps
            assert (least.optim.warmup_steps > 0) == (warmup > 0)
            assert abs(least.optim.warmup_steps - warmup * least.steps / stage.steps) <= 1
            assert least.steps > least.optim.warmup_steps
            # The least a stage keeps is one step after its warmup.
            shortest = least.batch_size * (least.optim.warmup_steps + 1)
            assert least.samples == pytest.approx(max(float(stage.samples * factor), shortest), abs=1)
            rest = {"batch_size": stage.batch_size, "samples": stage.samples, "optim": stage.optim}
            assert dataclasses.replace(least, **rest) == stage


def test_shrinking_h14_by_256():
    small = scale_recipe(recipes["clipa-v2-h14-84"], Fraction(1, 256)).stages[0]
    assert (small.batch_size, small.samples, small.steps, small.optim.warmup_steps) == (4096, 50_045_440, 12219, 200)
    assert small.optim.learning_rate == pytest.approx(2.048e-3 / 16)


def test_shrinking_by_one_changes_nothing_and_by_more_is_refused():
    recipe = recipes["clipa-b16-64"]
    assert scale_recipe(recipe, 1) is recipe
    for factor in (0, -0.5, 1.5, Fraction(2), float("nan")):
        with pytest.raises(ValueError, match="factor must lie in"):
            scale_recipe(recipe, factor)


def test_get_recipe_helps():
    assert get_recipe("clipa-v2-h14-84") is recipes["clipa-v2-h14-84"]
    with pytest.raises(ValueError, match="nearest: clipa-v2-h14-84"):
        get_recipe("CLIPA-v2-H14-84px")
    with pytest.raises(ValueError, match="there are: world-tiny, clipa-s16-64"):
        get_recipe("?")


def test_a_run_takes_another_evaluation():
    evaluation = EvalConfig(classification="set")
    assert run_config(recipes["world-tiny"], data=DATA, evaluation=evaluation).evaluation == evaluation


# Millions of parameters: open_clip's profile of the released text towers; image towers without positions, by hand.
@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("S/16", 21.7, None),
        ("B/16", 86.0, None),
        ("L/14", 303.7, 110.25),
        ("H/14", 631.8, 336.16),
        ("G/14", 1844.5, 672.32),
    ],
)
def test_sizes_are_those_of_released_weights(name, vision, text):
    model = eqx.filter_eval_shape(make_clip, clip_size(name), key=jax.random.key(0))
    towers = count_parameters(model.vision), count_parameters(model.text)
    assert towers[0] / 1e6 == pytest.approx(vision, abs=1.5)
    if text:
        assert towers[1] / 1e6 == pytest.approx(text, abs=0.01)


def test_recipes_train_the_presets():
    for preset in ("clipa-b16", "clipa-v2-h14", "clipa-v2-bigg14"):
        recipe = next(recipe for name, recipe in recipes.items() if name.startswith(preset))
        expected = presets[preset.replace("-v2", "")]
        vision = dataclasses.replace(recipe.model.vision, image_size=expected.vision.image_size)
        assert dataclasses.replace(recipe.model, vision=vision) == expected


def test_sizes_by_name():
    config = clip_size("H/14", vision={"pool": "first"}, text={"causal": True}, init_logit_bias=-10.0)
    assert (config.embed, config.vision, config.text) == (
        EMBED["H"],
        vision_size("H", patch_size=14, pool="first"),
        text_size("H", causal=True),
    )
    assert config.init_logit_bias == -10.0
    for name in ("H14", "H/", "H/14px", "/14", "X/14"):
        with pytest.raises(ValueError, match="B/16|size must be one of"):
            clip_size(name)
