"""SIGTERM at any moment saves what is done and ends with 143; what processes must share is found before they train."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary
from signal_runs import newest_step, start, stopped

from clipa_eqx.config import CheckpointConfig, EvalConfig
from clipa_eqx.models import load_weights
from clipa_eqx.train import _together


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("signals")
    write_shards(directory / "train")
    write_shards(directory / "retrieval", pairs=8, shards=1)
    write_vocabulary(directory / "vocab.txt")
    evaluation = EvalConfig(retrieval=str(directory / "retrieval"), every_steps=3)
    write_config(directory / "run.json", tiny_run(directory, evaluation=evaluation, checkpoint=CheckpointConfig(50)))
    return directory


def _arguments(data, name):
    return ["train", "--config", data / "run.json", "--run-dir", data / name]


def _result(run_dir):
    """Weights, and where the run was measured."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows]
    return jax.tree.leaves(load_weights(run_dir / "model.safetensors")), steps


@pytest.fixture(scope="module")
def plain(data):
    run = start(_arguments(data, "plain"), cache=data / "cache")
    codes, _ = run.end()
    assert codes == [0], run.said
    return _result(data / "plain")


def test_one_process_stopped_at_every_turn_is_the_run_that_was_not(data, plain):
    arguments = _arguments(data, "one")
    turns = [
        # Before the first step of a fresh run; the third batch does not come, then the first one of a resumed run.
        ("compile", 1, ("few", 0)),
        ("data", 3, ("few", 2)),
        ("data", 1, ("few", 2)),
        ("evaluation", 1, ("few", 3)),
    ]
    for times, (moment, nth, saved) in enumerate(turns, start=1):
        codes, seconds, said = stopped(arguments, moment, nth=nth, times=1 + times % 2, cache=data / "cache")
        assert codes == [143], said
        assert seconds < 30
        assert newest_step(data / "one") == saved
        assert f"stopped by SIGTERM after step {saved[1]} of stage '{saved[0]}', which is saved" in said[0]
    assert start(arguments, cache=data / "cache").end()[0] == [0]
    weights, steps = _result(data / "one")
    assert steps == plain[1]
    for got, wanted in zip(weights, plain[0], strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_two_processes_stop_at_the_same_step_though_one_is_told(data, plain, tmp_path):
    """The second one reads its own copy of the data, under other paths."""
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copy(data / "vocab.txt", tmp_path)
    paths = ["--set", f"data.train={tmp_path / 'train'}", f"data.tokenizer={tmp_path / 'vocab.txt'}", "data.threads=1"]
    arguments, own = _arguments(data, "two"), [[], paths]
    # The one that waits for data is not the one that is told; then both are, before the first step of a resumed run.
    for moment, nth, to in [(["never", "data"], 3, [0]), ("compile", 1, None)]:
        codes, seconds, said = stopped(arguments, moment, nth=nth, processes=2, to=to, own=own, cache=data / "cache")
        assert codes == [143, 143], said
        assert seconds < 30
        assert newest_step(data / "two") == ("few", 2)
    # Process 0 goes on alone, with the copy.
    assert start([*arguments, *paths], cache=data / "cache").end()[0] == [0]
    weights, steps = _result(data / "two")
    assert steps == plain[1]
    for got, wanted in zip(weights, plain[0], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_run_directory_that_one_process_does_not_see_is_named(data, tmp_path):
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        folder.mkdir()
    run = start(
        ["train", "--config", data / "run.json", "--run-dir", "run"], processes=2, folders=folders, cache=data / "cache"
    )
    codes, _ = run.end()
    assert codes == [1, 1]
    for said in run.said:
        assert f"does not see the run directory at {folders[1] / 'run'}" in said
        assert "Traceback" not in said
    assert not list(tmp_path.glob("*/run/checkpoints"))


def test_versions_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(_together, "texts_of_all", lambda text: [text, text.replace(jax.__version__, "0.0.1")])
    with pytest.raises(ValueError, match=r"versions.jax: .* there, '0.0.1' here \(process 0 there, process 1 here\)"):
        _together.check_versions()
