"""Configs: range checks, faults reported together, JSON there and back, overrides."""

import dataclasses
import json

import pytest

from clipa_eqx.config import (
    AugmentConfig,
    check_run,
    CLIPConfig,
    config_from_json,
    config_to_json,
    EvalConfig,
    load_run_config,
    OptimConfig,
    override,
    RateConfig,
    RunConfig,
    stage_model,
    StageConfig,
    TextConfig,
    VisionConfig,
)


@pytest.fixture
def run():
    few = StageConfig(name="few", samples=6400, batch_size=64, image_size=64, text_length=8)
    full = StageConfig(name="all", samples=640, batch_size=64, image_size=112, text_length=16)
    model = CLIPConfig(vision=VisionConfig(image_size=112), text=TextConfig(context_length=16))
    return RunConfig(model=model, stages=(few, full))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(image_size=100), "not a multiple of patch_size=16; nearest sizes that are: 96 and 112"),
        (lambda: VisionConfig(width=100, heads=8), "width=100 does not split over heads=8"),
        (lambda: VisionConfig(pool="first", class_token=False), "set class_token=True"),
        (lambda: VisionConfig(width=66, heads=6), "divisible by 4"),
        (lambda: VisionConfig(activation="relu"), "activation must be one of gelu, gelu_tanh, gelu_quick, got 'relu'"),
        (lambda: TextConfig(pool="end"), "set end_id"),
        (lambda: TextConfig(vocab_size=10, pad_id=10), "outside a vocabulary of 10 ids"),
        (lambda: CLIPConfig(embed=8, vision=VisionConfig(projection="none")), "must equal embed=8"),
        (lambda: AugmentConfig(crop_area_min=0.0), r"crop_area_min must lie in \(0.0, 1.0\], got 0.0"),
        (lambda: OptimConfig(learning_rate=float("nan")), "learning_rate must lie in"),
        (lambda: OptimConfig(b2=1.0), "b2 must lie in"),
        (lambda: StageConfig(image_reduction="grid"), "disagree"),
        (lambda: StageConfig(keep_patches=4), "disagree"),
        (lambda: StageConfig(name="../up"), "folder name"),
        (lambda: StageConfig(micro_batch=-1), "micro_batch must be at least 0, got -1"),
        (lambda: StageConfig(ema_decay=1.0), r"ema_decay must lie in \[0.0, 1.0\), got 1.0"),
        (lambda: RateConfig("vision.*", -1.0), "factor must lie in"),
        (lambda: OptimConfig(text_layer_decay=0.0), r"text_layer_decay must lie in \(0.0, 1.0\]"),
        (lambda: RunConfig(shard="half"), "shard must be one of none, optimizer, all, got 'half'"),
    ],
)
def test_single_faults(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_good_run_passes(run):
    check_run(run, num_devices=8, num_processes=2)


def test_all_cross_field_faults_are_reported_together(run):
    few = dataclasses.replace(
        run.stages[0],
        image_size=60,
        batch_size=63,
        text_length=99,
        loss="sigmoid",
        optim=OptimConfig(warmup_steps=1000),
        micro_batch=20,
    )
    full = dataclasses.replace(run.stages[1], name="few", image_reduction="random", keep_patches=50, samples=0)
    with pytest.raises(ValueError) as caught:
        check_run(
            dataclasses.replace(run, stages=(few, full), evaluation=EvalConfig(ema=True)),
            num_devices=8,
            num_processes=3,
        )
    message = str(caught.value)
    for part in (
        "stage name 'few' is used 2 times",
        "8 devices do not split over 3 processes",
        "image_size=60 is not a multiple of the model's patch_size=16; nearest sizes that are: 48 and 64",
        "batch_size=63 does not split over 8 devices; nearest sizes that do: 56 and 64",
        "text_length=99 keeps more tokens than data.caption_tokens=64",
        "loss='sigmoid' needs model.init_logit_bias",
        "warmup_steps + cooldown_steps = 1000 is more than the 102 steps",
        "keep_patches=50 is more than the 49 patches",
        "samples=0",
        "micro_batch=20 does not divide batch_size=63",
        "micro_batch=20 does not split over 8 devices; nearest sizes that do: 16 and 24",
        "evaluation.ema measures averaged weights, of which ema_decay=0 keeps none",
    ):
        assert part in message


def test_a_layout_that_does_not_divide_a_width_is_named(run):
    run = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], batch_size=70),), shard="all")
    with pytest.raises(ValueError, match="over 7 devices, which do not divide model.vision.width=768"):
        check_run(run, num_devices=7)
    check_run(dataclasses.replace(run, shard="none"), num_devices=7)


def test_json_round_trip(run):
    optim = OptimConfig(rates=(RateConfig("vision.*", 0.0), RateConfig("*.bias", 2.0)))
    run = dataclasses.replace(run, stages=(*run.stages, StageConfig(optim=optim)))
    text = json.dumps(config_to_json(run))
    assert config_from_json(RunConfig, json.loads(text)) == run


def test_json_takes_defaults_for_fields_left_out():
    assert config_from_json(OptimConfig, {"learning_rate": 1}) == OptimConfig(learning_rate=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"visoin": {}}}, "model has no field visoin; it has: embed, vision"),
        ({"stages": [{"batch_size": "big"}]}, "stages.0.batch_size must be int, got 'big'"),
        ({"stages": {}}, "stages must be a list"),
        ({"model": 3}, "model must be a JSON object, got int"),
        ({"seed": True}, "seed must be int, got True"),
        ({"model": {"vision": {"pool": "best"}}}, "pool must be one of"),
    ],
)
def test_json_faults_name_the_place(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(RunConfig, values)


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="config.json is not a JSON file"):
        load_run_config(path)


def test_override_reaches_stages_by_place_and_name(run):
    changed = override(
        run, ["stages.0.batch_size=32", "stages.all.optim.learning_rate=1e-4", "model.vision.pool=first"]
    )
    assert changed.stages[0].batch_size == 32
    assert changed.stages[1].optim.learning_rate == 1e-4
    assert changed.model.vision.pool == "first"
    assert dataclasses.replace(changed, model=run.model, stages=run.stages) == run


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "written path=value"),
        ("stages.2.batch_size=1", "there is no '2'; there are few, all"),
        ("model.visoin.width=1", "there is no 'visoin'"),
        ("model.vision.breadth=1", "model.vision.breadth is not a field of a run; there are image_size"),
        ("seed.x=1", "seed.x: is not|seed.x is not a field of a run; it is a single value"),
        ("seed=few", "seed must be int, got 'few'"),
    ],
)
def test_override_faults(run, assignment, message):
    with pytest.raises(ValueError, match=message):
        override(run, [assignment])


def test_a_stage_trains_the_same_model_at_its_own_sizes(run):
    model = stage_model(run, run.stages[0])
    assert (model.vision.image_size, model.text.context_length) == (64, 8)
    assert dataclasses.replace(model.vision, image_size=112) == run.model.vision


def test_samples_round_up_to_whole_batches():
    assert StageConfig(samples=129, batch_size=64).steps == 3
