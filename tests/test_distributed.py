"""Two processes of four devices, one of eight and one of one train the same model."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary, xla_flags

from clipa_eqx.models import load_weights


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each layout's run directory and first gradient."""
    directory = tmp_path_factory.mktemp("distributed")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    run = tiny_run(directory)
    stage = dataclasses.replace(run.stages[0], samples=20 * 16, image_reduction="random", text_reduction="random")
    config = write_config(directory / "config.json", dataclasses.replace(run, stages=(stage,)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    layouts = {
        "2x4": [{"devices": 4, "processes": (address, 2, index)} for index in range(2)],
        "1x8": [{"devices": 8}],
        "1x1": [{"devices": 1}],
    }
    found = {}
    for name, workers in layouts.items():
        run_dir, gradient = directory / name, directory / f"{name}.npz"
        started = [_start(config, run_dir, gradient, **worker) for worker in workers]
        outputs = [process.communicate(timeout=240)[0] for process in started]
        for process, output in zip(started, outputs, strict=True):
            assert process.returncode == 0, output
        with np.load(gradient) as arrays:
            found[name] = load_weights(run_dir / "model.safetensors"), [arrays[key] for key in arrays.files]
    return found


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_first_gradient_is_that_of_one_device(runs, layout):
    for got, one in zip(runs[layout][1], runs["1x1"][1], strict=True):
        np.testing.assert_allclose(got, one, atol=1e-5 * max(1.0, np.abs(one).max()))


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_weights_after_twenty_steps_are_those_of_one_device(runs, layout):
    for got, one in zip(jax.tree.leaves(runs[layout][0]), jax.tree.leaves(runs["1x1"][0]), strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4)
