"""Runs over several processes and devices train the model of one device, go on from each other, and fail together."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import start_clipa, tiny_run, write_config, write_shards, write_vocabulary, xla_flags

from clipa_eqx.config import CheckpointConfig, EvalConfig
from clipa_eqx.models import load_weights
from clipa_eqx.train import Records


WORKER = Path(__file__).parent / "distributed_worker.py"


def _start(config, run_dir, gradient, *, devices, processes=()):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    environment["PYTHONPATH"] = str(WORKER.parent.parent)
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, (config, run_dir, gradient, *processes))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _run(config, run_dir, gradient, *, processes, devices):
    """Train in so many processes of so many devices; returns weights and average, losses, and what was measured."""
    address = _address()
    joined = [(address, processes, index) for index in range(processes)] if processes > 1 else [()]
    started = [_start(config, run_dir, gradient, devices=devices, processes=place) for place in joined]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    weights = [load_weights(run_dir / name) for name in ("model.safetensors", "model-ema.safetensors")]
    rows = Records(run_dir / "metrics.jsonl").read()
    return weights, [row["loss"] for row in rows if "loss" in row], [row for row in rows if "loss" not in row]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("distributed")
    write_shards(directory / "train")
    # An odd number of pictures, so that the two processes' shares are not alike, and a broken one in the second's.
    write_shards(directory / "retrieval", pairs=21, shards=1, broken=(15,))
    write_vocabulary(directory / "vocab.txt")
    return directory


def _config(data, name, **fields):
    """A run of two stages, 4 + 4 steps, whose patches and tokens are drawn; `fields` say how it is carried out.

    It is saved every second step. The second stage stretches the positions of the first.
    """
    run = tiny_run(
        data,
        checkpoint=CheckpointConfig(every_steps=2),
        evaluation=EvalConfig(retrieval=fields.pop("retrieval", ""), ema=True),
        shard=fields.pop("shard", "none"),
    )
    few, full = (
        dataclasses.replace(stage, image_reduction="random", keep_patches=4, ema_decay=0.9, **fields)
        for stage in run.stages
    )
    stages = (
        dataclasses.replace(few, samples=4 * 16, text_reduction="random"),
        dataclasses.replace(full, position_transfer="resample"),
    )
    model = dataclasses.replace(run.model, vision=dataclasses.replace(run.model.vision, position="frozen"))
    return write_config(data / f"{name}.json", dataclasses.replace(run, model=model, stages=stages))


@pytest.fixture(scope="module")
def plain(data):
    """One process, one device, nothing split."""
    config = _config(data, "plain", retrieval=str(data / "retrieval"))
    return _run(config, data / "plain", data / "plain.npz", processes=1, devices=1)


@pytest.fixture(scope="module")
def joint(data):
    """Two processes of four devices each, everything split, two micro-batches."""
    config = _config(data, "joint", shard="all", micro_batch=8, retrieval=str(data / "retrieval"))
    return _run(config, data / "joint", data / "joint.npz", processes=2, devices=4)


def test_first_gradient_of_two_processes_is_that_of_one_device(plain, joint, data):
    with np.load(data / "joint.npz") as got, np.load(data / "plain.npz") as one:
        assert got.files == one.files
        for name in got.files:
            np.testing.assert_allclose(got[name], one[name], atol=1e-5 * max(1.0, np.abs(one[name]).max()))


def test_weights_and_average_after_two_stages_are_those_of_one_device(plain, joint):
    for got, one in zip(jax.tree.leaves(joint[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4)
    np.testing.assert_allclose(joint[1], plain[1], rtol=1e-4)


def test_two_processes_measure_what_one_does(plain, joint):
    assert [row["stage"] for row in plain[2]] == ["few", "all"]
    for one, two in zip(plain[2], joint[2], strict=True):
        assert "image_to_text_recall@1" in one
        assert two == pytest.approx(one)


@pytest.mark.parametrize(
    ("source", "stage", "shard", "processes", "devices"),
    [("joint", "few", "optimizer", 1, 2), ("joint", "all", "none", 1, 1), ("plain", "few", "all", 2, 1)],
    ids=["8-devices-to-2", "8-devices-to-1", "1-process-to-2"],
)
def test_a_saved_run_goes_on_elsewhere(source, stage, shard, processes, devices, plain, joint, data):
    """From amid its first stage, or its second."""
    name = f"{source}-to-{processes}x{devices}"
    run_dir = shutil.copytree(data / source, data / name)
    for later in ["all/4"] if stage == "all" else ["all", "few/4"]:
        shutil.rmtree(run_dir / "checkpoints" / later)
    weights, losses, _ = _run(_config(data, name, shard=shard), run_dir, "-", processes=processes, devices=devices)
    assert len(losses) == 8
    np.testing.assert_allclose(losses, plain[1], rtol=1e-4)
    for got, one in zip(jax.tree.leaves(weights), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4)


def _train_two(config, run_dir, *changes):
    """`clipa train` in two processes, the second with other arguments; exit codes and messages."""
    address = _address()
    join = ["--processes.coordinator", address, "--processes.count", 2, "--processes.index"]
    started = [
        start_clipa("train", "--config", config, "--run-dir", run_dir, *join, index, *(changes if index else ()))
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    return [process.returncode for process in started], errors


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("data.train=OTHER", ["config.data.train: ", "data: ", "(process 0 there, process 1 here)"]),
        ("data.train=nowhere", ["nowhere"]),
    ],
)
def test_processes_that_do_not_fit_together_all_say_why(change, parts, data, tmp_path):
    write_shards(tmp_path / "other", pairs=32)
    change = change.replace("OTHER", str(tmp_path / "other"))
    codes, errors = _train_two(_config(data, "plain"), tmp_path / "run", "--set", change)
    assert codes == [1, 1], errors
    for error in errors:
        assert "Traceback" not in error
        for part in parts:
            assert part in error
    assert not (tmp_path / "run").exists()


def test_a_process_that_stays_alone_says_so(data, tmp_path):
    join = ["--processes.coordinator", _address(), "--processes.count", 2, "--processes.index", 0]
    process = start_clipa(
        "train", "--config", _config(data, "plain"), "--run-dir", tmp_path / "run", *join, "--processes.timeout-s", 1
    )
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 0 of 2 waited 1 s for the others" in error
