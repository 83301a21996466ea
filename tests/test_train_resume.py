"""A run killed at any point and started again is the run that was never interrupted, bit for bit."""

import dataclasses
import importlib.util
import re
import signal
import time

import pytest
from helpers import run_clipa, start_clipa, tiny_run, write_config, write_shards, write_vocabulary

from clipa_eqx.config import load_run_config
from clipa_eqx.train import Records
from clipa_eqx.train._run_dir import RunDirectory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train", broken=(3, 40))
    write_vocabulary(directory / "vocab.txt")
    return directory


@pytest.fixture(scope="module")
def config(data):
    return write_config(data / "config.json", tiny_run(data))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(data, config, cache):
    run_dir = data / "uninterrupted"
    code, _, err = run_clipa("train", "--config", config, "--run-dir", run_dir, cache=cache)
    assert code == 0, err
    return run_dir


def _curve(run_dir):
    """What the run decided, without what the clock decided."""
    timed = ("samples_per_s", "data_wait", "compile_s")
    rows = Records(run_dir / "metrics.jsonl").read()
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def _kill_after(rows, config, run_dir, cache, number=signal.SIGKILL):
    """Start the run and kill it, by default without a chance to clean up, once its record has so many rows."""
    process = start_clipa("train", "--config", config, "--run-dir", run_dir, cache=cache)
    deadline = time.monotonic() + 120
    while len(_curve(run_dir)) < rows:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate()
    return process.returncode, err


def test_an_uninterrupted_run_records_every_step(uninterrupted):
    rows = _curve(uninterrupted)
    assert [(row["stage"], row["step"]) for row in rows] == [("few", s) for s in range(1, 7)] + [
        ("all", s) for s in range(1, 5)
    ]


def test_killed_three_times_and_started_again(data, config, cache, uninterrupted):
    """Before the first checkpoint, between two of them, and in the second stage; data workers die with it.

    The second time by SIGTERM, upon which the run saves what it has, at whatever step.
    """
    run_dir = data / "killed"
    _kill_after(1, config, run_dir, cache)
    code, err = _kill_after(3, config, run_dir, cache, number=signal.SIGTERM)
    assert code == 143, err
    step = re.search(r"stopped by SIGTERM after step (\d+) of stage '(few|all)', which is saved; the same command", err)
    assert (run_dir / "checkpoints" / step[2] / step[1]).is_dir()
    assert _curve(run_dir)[-1]["step"] == int(step[1])
    _kill_after(8, config, run_dir, cache)
    code, _, err = run_clipa("train", "--config", config, "--run-dir", run_dir, cache=cache)
    assert code == 0, err
    assert _curve(run_dir) == _curve(uninterrupted)
    assert (run_dir / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    faults = [Records(folder / "skipped.jsonl").read() for folder in (run_dir, uninterrupted)]
    assert faults[0] == faults[1]
    assert {row["key"] for row in faults[0]} == {"00000.tar/000000003", "00001.tar/000000040"}


def test_a_finished_run_started_again_changes_nothing(config, cache, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes(), (uninterrupted / "model.safetensors").read_bytes()
    code, _, err = run_clipa("train", "--config", config, "--run-dir", uninterrupted, cache=cache)
    assert code == 0, err
    after = (uninterrupted / "metrics.jsonl").read_bytes(), (uninterrupted / "model.safetensors").read_bytes()
    assert after == before


def test_a_run_goes_on_with_the_decoder_it_began_with(tmp_path, monkeypatch):
    paths, run = RunDirectory(tmp_path / "run"), tiny_run(tmp_path)
    assert run.data.decoder == "auto"
    paths.claim(paths.settle(run))
    assert load_run_config(paths.config).data.decoder == "fast"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert RunDirectory(tmp_path / "other").settle(run).data.decoder == "pillow"
    with pytest.raises(ImportError, match="fast"):
        paths.settle(run)
    pillow = dataclasses.replace(run, data=dataclasses.replace(run.data, decoder="pillow"))
    with pytest.raises(ValueError, match=r"data.decoder: 'fast' there, 'pillow' here"):
        paths.check(paths.settle(pillow))
