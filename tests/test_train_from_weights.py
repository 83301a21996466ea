"""Runs that start from weights: the model that is trained is the one that was given, whatever form it came in."""

import dataclasses
import json
import shlex
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import run_clipa, start_clipa, tiny_run, write_shards, write_vocabulary
from starts import FORMS, own_pretrained, tune_config, write_image_tower

from clipa_eqx.cli import main
from clipa_eqx.config import load_run_config, OptimConfig
from clipa_eqx.data import load_tokenizer, open_pairs, open_texts, training_batches
from clipa_eqx.init_from import starting_model
from clipa_eqx.interop import export_open_clip, load_pretrained
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.models import named_leaves, normalize_pixels, scale_pixels
from clipa_eqx.sharding import make_mesh, whole_on_one_device
from clipa_eqx.train import Records, train
from clipa_eqx.train._loop import _data_seed
from clipa_eqx.train._stage import first_state, start_stage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


def embeddings(model):
    rng = np.random.default_rng(5)
    side, text = model.config.vision.image_size, model.config.text
    pixels = rng.standard_normal((3, side, side, 3), np.float32)
    tokens = rng.integers(1, text.vocab_size, (3, text.context_length)).astype(np.int32)
    if text.end_id >= 0:
        tokens[:, -1] = text.end_id
    both = jax.jit(lambda m, x, t: (jax.vmap(m.encode_image)(x), jax.vmap(m.encode_text)(t)))
    return both(model, jnp.asarray(pixels), jnp.asarray(tokens))


def before_the_first_update(config):
    """What the devices hold once the first stage is ready to step."""
    (stage,), mesh = config.stages, make_mesh()
    start = start_stage(config, stage, starting_model(config), mesh)
    return whole_on_one_device(first_state(start, stage, mesh, key=jax.random.key(0)).model, mesh)


def assert_same_arrays(one, other):
    found, wanted = named_leaves(one), named_leaves(other)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("shard", ["none", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_begins_with_the_model_of_the_weights(form, shard, tmp_path):
    name, source = FORMS[form](tmp_path)
    if shard == "all" and (source.config.vision.width % 8 or source.config.text.width % 8):
        pytest.skip("widths that eight devices do not divide")
    model = before_the_first_update(tune_config(source, name, shard=shard))
    assert_same_arrays(model, source)
    for ours, theirs in zip(embeddings(model), embeddings(source), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_weights_without_updates_are_exported_as_they_came(tmp_path):
    name, source = FORMS["open_clip"](tmp_path)
    model = before_the_first_update(tune_config(source, name))
    found = load_pretrained(name)
    export_open_clip(dataclasses.replace(found, model=model), tmp_path / "again")
    weights = "open_clip_model.safetensors"
    one, other = (safetensors.numpy.load_file(folder / weights) for folder in (tmp_path / "again", name))
    assert one.keys() == other.keys()
    assert all(one[key].tobytes() == other[key].tobytes() for key in other)


def test_at_a_tiny_rate_the_losses_are_those_of_the_source(data, tmp_path):
    name, source = FORMS["open_clip"](tmp_path)
    config = tune_config(source, name)
    (stage,) = config.stages
    stage = dataclasses.replace(stage, samples=160)
    config = dataclasses.replace(
        config,
        stages=(stage,),
        log_every_steps=1,
        data=dataclasses.replace(tiny_run(data).data, threads=1),
    )
    result = train(config, tmp_path / "run", model=lambda: starting_model(config), console=False)
    losses = [row["loss"] for row in Records(tmp_path / "run" / "metrics.jsonl").read()]
    pairs, tokenizer = open_pairs(config.data), load_tokenizer(config.data.tokenizer)
    batches = training_batches(
        pairs,
        open_texts(pairs, tokenizer, config.data),
        load_run_config(tmp_path / "run" / "config.json").data,
        stage,
        seed=_data_seed(config.seed, 0),
        process_index=0,
        process_count=1,
        start_step=0,
    )

    @jax.jit
    def loss(pixels, tokens):
        images = jax.vmap(lambda x: source.encode_image(normalize_pixels(scale_pixels(x), source.config.vision)))(
            pixels
        )
        return softmax_contrastive(images, jax.vmap(source.encode_text)(tokens), source.logit_scale)

    try:
        wanted = []
        for _ in range(10):
            batch = next(batches)
            wanted.append(float(loss(batch.pixels, batch.tokens[:, : stage.text_length])))
    finally:
        batches.close()
    np.testing.assert_allclose(losses, wanted, atol=1e-3)
    assert result.model.config == source.config


def small_text():
    """What the command is told for a text tower that compiles quickly."""
    return [f"model.text.{name}={value}" for name, value in {"width": 16, "depth": 1, "heads": 2, "hidden": 32}.items()]


@pytest.mark.parametrize("mae", [False, True], ids=["timm", "mae"])
def test_lit_from_an_image_tower_alone(mae, data, tmp_path):
    """The tower keeps every byte and has neither gradient nor moments; the text side learns."""
    tower = tmp_path / "tower.safetensors"
    arrays = write_image_tower(tower, mae=mae)
    arguments = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt", "--run-dir", tmp_path / "run"]
    sets = [*small_text(), "log_every_steps=1"]
    command = ["train", "lit", "--init-from", tower, *arguments, "--epochs", "4", "--set", *sets]
    assert main([str(argument) for argument in command]) == 0
    config = load_run_config(tmp_path / "run" / "config.json")
    first, last = starting_model(config), load_pretrained(tmp_path / "run").model
    for name, array in named_leaves(first).items():
        same = np.asarray(array).tobytes() == np.asarray(named_leaves(last)[name]).tobytes()
        assert same == name.startswith("vision."), name
    weight = named_leaves(last)["vision.stack.blocks.mlp.widen.weight"][1]
    assert np.asarray(weight).T.tobytes() == arrays["blocks.1.mlp.fc1.weight"].tobytes()
    shapes = start_stage(config, config.stages[0], first, make_mesh()).state
    moments = [name for name in named_leaves(shapes.opt_state) if ".vision." in name]
    assert moments == []
    assert any(".text." in name for name in named_leaves(shapes.opt_state))
    rows = Records(tmp_path / "run" / "metrics.jsonl").read()
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_an_image_tower_is_no_whole_model(data, tmp_path, capsys):
    write_image_tower(tmp_path / "tower.safetensors")
    arguments = ["--data.train", data / "train", "--data.tokenizer", data / "vocab.txt", "--run-dir", tmp_path / "run"]
    assert main([str(a) for a in ("train", "--init-from", tmp_path / "tower.safetensors", *arguments)]) == 1
    assert "holds an image tower alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_came_with_the_weights_is_written(data, tmp_path):
    """Resize rule, kernel, context and the weights' own statistics; what the user says goes before."""
    name, source = FORMS["open_clip"](tmp_path)
    said = ["model.vision.pixel_mean=[0.5,0.5,0.5]", "model.vision.drop_path=0.1", "stages.0.samples=64"]
    arguments = ["--data.train", data / "train", "--run-dir", tmp_path / "run", "--set", *said]
    assert main([str(a) for a in ("train", "--init-from", name, *arguments)]) == 0
    config = load_run_config(tmp_path / "run" / "config.json")
    assert (config.evaluation.resize, config.evaluation.interpolation) == ("squash", "bicubic")
    assert config.stages[0].augment.interpolation == "bicubic"
    assert config.model.vision.pixel_mean == (0.5, 0.5, 0.5)
    assert config.model.vision.pixel_std == source.config.vision.pixel_std
    assert len(config.init_digest) == 64
    model = load_pretrained(tmp_path / "run").model
    assert model.vision.stack.drop_path == 0.1
    (entry,) = json.loads((tmp_path / "run" / "environment.json").read_text())["ancestry"]
    assert entry == {"from": str(name), "digest": config.init_digest}


def test_a_diverged_run_names_the_command_that_goes_on(data, tmp_path, capsys):
    run = tiny_run(data)
    few, full = run.stages
    wild = dataclasses.replace(full, samples=30 * 16, optim=OptimConfig(learning_rate=1e30, weight_decay=0.0))
    with pytest.raises(FloatingPointError) as caught:
        train(dataclasses.replace(run, stages=(few, wild)), tmp_path / "run", console=False)
    command = shlex.split(str(caught.value).split(": clipa ")[1])
    saved = tmp_path / "run" / "checkpoints" / "few" / "6"
    assert command[command.index("--init-from") + 1] == str(saved)
    assert command[-1] == "stages.all.optim.learning_rate=5e+29"
    command[-1] = "stages.all.optim.learning_rate=1e-4"
    assert main(command) == 0, capsys.readouterr().err
    again = tmp_path / "run-again"
    assert [stage.name for stage in load_run_config(again / "config.json").stages] == ["all"]
    (entry,) = json.loads((again / "environment.json").read_text())["ancestry"]
    assert (entry["from"], entry["stage"], entry["step"], entry["recipe"]) == (str(saved), "few", 6, "tiny")
    # A run from that run knows both.
    assert main(["train", "--init-from", str(again), *more(data, tmp_path / "third")]) == 0
    line = json.loads((tmp_path / "third" / "environment.json").read_text())["ancestry"]
    assert [entry["from"] for entry in line] == [str(again), str(saved)]


def more(data, run_dir):
    return ["--data.train", str(data / "train"), "--run-dir", str(run_dir), "--epochs", "1"]


def test_resampled_positions_are_there_again_after_a_restart(data, tmp_path):
    """A formula in the config, weights of another grid: their table is stretched and stored, and stays so."""
    source = own_pretrained(tmp_path).model
    run = tiny_run(data)
    stage = dataclasses.replace(run.stages[1], image_size=48, position_transfer="resample", samples=2 * 16)
    config = dataclasses.replace(run, stages=(stage,))
    first = train(config, tmp_path / "run", model=source, console=False)
    assert load_run_config(tmp_path / "run" / "config.json").model.vision.position == "frozen"
    again = train(config, tmp_path / "run", model=lambda: source, console=False)
    assert_same_arrays(again.model, first.model)


def kill_once(ready, command, cache):
    """Start the command and kill it without a chance to clean up once `ready()`."""
    process = start_clipa(*command, cache=cache)
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_before_and_after_the_first_checkpoint(data, tmp_path):
    name, _ = FORMS["open_clip"](tmp_path)
    sizes = ["stages.0.batch_size=16", "stages.0.samples=480", "log_every_steps=1", "checkpoint.every_steps=4"]
    command = lambda run_dir: [
        *("train", "--init-from", name, "--data.train", data / "train", "--run-dir", run_dir, "--set", *sizes)
    ]
    cache, killed = tmp_path / "cache", tmp_path / "killed"
    rows = lambda: Records(killed / "metrics.jsonl").read()
    kill_once(lambda: len(rows()) >= 1, command(killed), cache)
    kill_once(lambda: len(rows()) >= 6 and any(killed.glob("checkpoints/*/4")), command(killed), cache)
    for run_dir in (killed, tmp_path / "whole"):
        code, _, err = run_clipa(*command(run_dir), cache=cache)
        assert code == 0, err
    weights = [(run_dir / "model.safetensors").read_bytes() for run_dir in (killed, tmp_path / "whole")]
    assert weights[0] == weights[1]
