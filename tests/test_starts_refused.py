"""Weights that a run cannot start from: one message that says what came and what to change, and nothing is written."""

import dataclasses
import re

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny_run, write_config, write_shards, write_vocabulary
from starts import clipa_npz, open_clip, own_pretrained, run_directory, write_image_tower

from clipa_eqx.cli import main
from clipa_eqx.config import RateConfig
from clipa_eqx.interop import save_pretrained


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


def missing(place):
    return place / "nowhere", "There are no weights at .*give a path, or hf-hub:org/name"


def text_file(place):
    (place / "notes.txt").write_text("no weights")
    return place / "notes.txt", "notes.txt"


def empty_folder(place):
    (place / "empty").mkdir()
    return place / "empty", "config.json"


def cut_short(place):
    folder, _ = open_clip(place)
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder, "open_clip_model.safetensors"


def npz_cut_short(place):
    file, _ = clipa_npz(place)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file, "clipa.npz"


def not_finite(place):
    found = own_pretrained(place)
    model = eqx.tree_at(lambda clip: clip.vision.norm.scale, found.model, replace_fn=lambda scale: scale * np.nan)
    save_pretrained(dataclasses.replace(found, model=model), place / "run")
    return place / "run", "NaN or infinity in vision.norm.scale"


def other_arrays(place):
    safetensors.numpy.save_file({"encoder.weight": np.zeros((2, 2), np.float32)}, place / "other.safetensors")
    return place / "other.safetensors", "no weights that a run can start from.*encoder.weight"


def config_file(place):
    folder, _ = run_directory(place)
    return folder / "config.json", "is a config, not weights: give the directory"


BAD = [
    missing,
    text_file,
    empty_folder,
    cut_short,
    npz_cut_short,
    not_finite,
    other_arrays,
    config_file,
]


def refused(capsys, run_dir, *arguments):
    assert main([str(argument) for argument in ("train", *arguments, "--run-dir", run_dir)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not run_dir.exists()
    return " ".join(error.split())


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.__name__)
def test_weights_that_are_none(case, data, tmp_path, capsys):
    name, message = case(tmp_path)
    places = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt"]
    error = refused(capsys, tmp_path / "out", "--init-from", name, *places)
    assert re.search(message, error), error


def test_weights_of_another_model_than_the_recipe(data, tmp_path, capsys):
    """Every field that differs is named."""
    folder, _ = run_directory(tmp_path)
    places = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt"]
    error = refused(capsys, tmp_path / "out", "world-tiny", "--init-from", folder, *places)
    for field in ("embed", "vision.width", "vision.depth", "text.vocab_size", "text.width"):
        assert f"{field}: " in error


def test_weights_of_another_model_than_the_config(data, tmp_path, capsys):
    folder, source = run_directory(tmp_path)
    vision = dataclasses.replace(source.config.vision, width=32, pool="first")
    model = dataclasses.replace(source.config, vision=vision)
    config = write_config(tmp_path / "run.json", tiny_run(data, model=model))
    error = refused(capsys, tmp_path / "out", "--config", config, "--init-from", folder)
    for text in ("do not fit the run's model", "vision.width (16 -> 32)", "vision.pool (mean -> first)"):
        assert text in error


def test_a_sigmoid_loss_needs_a_bias_in_the_weights(data, tmp_path, capsys):
    folder, source = run_directory(tmp_path)
    run = tiny_run(data, model=dataclasses.replace(source.config, init_logit_bias=-10.0))
    stages = tuple(dataclasses.replace(stage, loss="sigmoid") for stage in run.stages)
    config = write_config(tmp_path / "run.json", dataclasses.replace(run, stages=stages))
    error = refused(capsys, tmp_path / "out", "--config", config, "--init-from", folder)
    assert "init_logit_bias (None -> -10.0)" in error


def test_a_vocabulary_of_another_size(data, tmp_path, capsys):
    folder, _ = run_directory(tmp_path)
    words = (data / "vocab.txt").read_text() + "".join(f"word{number}\n" for number in range(20))
    (tmp_path / "vocab.txt").write_text(words)
    places = ["--data.train", data / "train", "--data.tokenizer", tmp_path / "vocab.txt"]
    error = refused(capsys, tmp_path / "out", "--init-from", folder, *places)
    assert "has 37 entries, the model's table text.vocab_size=20 rows" in error


def test_a_config_that_lies_beside_weights(data, tmp_path, capsys):
    folder, _ = run_directory(tmp_path)
    assert f"use --init-from {folder}" in refused(capsys, tmp_path / "out", "--config", folder / "config.json")


def test_noise_is_not_frozen(data, tmp_path, capsys):
    run = tiny_run(data)
    rates = (RateConfig("vision.*", 0.0),)
    stages = tuple(
        dataclasses.replace(stage, optim=dataclasses.replace(stage.optim, rates=rates)) for stage in run.stages
    )
    config = write_config(tmp_path / "run.json", dataclasses.replace(run, stages=stages))
    error = refused(capsys, tmp_path / "out", "--config", config)
    assert "optim.rates freezes 'vision.*'" in error
    assert "drawn at random, not loaded" in error


def test_lit_needs_weights(data, tmp_path, capsys):
    places = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt"]
    for recipe in ("lit", "fine-tune", "unmask"):
        assert "--init-from" in refused(capsys, tmp_path / "out", recipe, *places)


def test_weights_without_a_vocabulary(data, tmp_path, capsys):
    file, _ = clipa_npz(tmp_path)
    assert "--data.tokenizer" in refused(capsys, tmp_path / "out", "--init-from", file, "--data.train", data / "train")


def test_an_image_tower_that_lacks_an_array(data, tmp_path, capsys):
    tower = tmp_path / "tower.safetensors"
    write_image_tower(tower)
    arrays = safetensors.numpy.load_file(tower)
    del arrays["blocks.1.mlp.fc2.weight"]
    safetensors.numpy.save_file(arrays, tower)
    places = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt"]
    error = refused(capsys, tmp_path / "out", "lit", "--init-from", tower, *places)
    assert "blocks.1.mlp.fc2.weight" in error
