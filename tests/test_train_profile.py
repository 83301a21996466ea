"""The trace of a few steps: what it holds, and that it changes nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny_run, trace_events, write_shards, write_vocabulary

from clipa_eqx.config import EvalConfig
from clipa_eqx.train import check_profile, Records, train
from clipa_eqx.train._profile import Profile


class _Stop(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One stage of five steps, a checkpoint after each two."""
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    run = tiny_run(directory)
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[1], samples=5 * 16),))


@pytest.fixture(scope="module")
def broken_off(run, tmp_path_factory):
    """The directory of a run that was to trace all its steps and failed after the third."""

    def stop(model):
        raise _Stop

    run_dir = tmp_path_factory.mktemp("traced") / "run"
    evaluated = dataclasses.replace(run, evaluation=EvalConfig(every_steps=3))
    with pytest.raises(_Stop):
        train(evaluated, run_dir, evaluators=(stop,), profile_steps=range(1, 6), console=False)
    return run_dir


def _steps(events):
    return [step for name, step in events if name == "train"]


def test_a_run_that_fails_amid_the_steps_leaves_its_trace(broken_off):
    (events,) = trace_events(broken_off)
    assert _steps(events) == [1, 2, 3]
    # What XLA calls a run of the program on a CPU device: three steps on each of eight.
    assert sum(name == "ThunkExecutor::Execute" for name, _ in events) >= 3 * 8


def test_a_resumed_run_traces_what_is_left_and_changes_nothing(run, broken_off, tmp_path, capsys):
    """It goes on from the second step; the run without traces is never interrupted."""
    train(run, broken_off, profile_steps=range(2, 5), console=False)
    assert "continues after step 2, so the steps to profile 2:3 are past: only 3:5 is traced" in capsys.readouterr().err
    assert [_steps(events) for events in trace_events(broken_off)[1:]] == [[3, 4]]

    train(run, broken_off, profile_steps=range(2, 5), console=False)
    assert "the steps to profile 2:5 are past: nothing is traced" in capsys.readouterr().err
    assert len(trace_events(broken_off)) == 2

    plain_dir = tmp_path / "plain"
    train(run, plain_dir, console=False)
    plain, rows = (Records(folder / "metrics.jsonl").read() for folder in (plain_dir, broken_off))
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in plain]
    for name in ("config.json", "model.safetensors"):
        assert (broken_off / name).read_bytes() == (plain_dir / name).read_bytes()
    assert not (plain_dir / "profile").exists()


def test_the_trace_waits_for_the_devices(tmp_path):
    """What ran before does not reach into it, what it holds is done."""
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, x: x @ x / jnp.linalg.norm(x), x))
    before = slow(jnp.ones((300, 300)))
    profile = Profile(range(7, 9), tmp_path)
    profile.begin(6, slow(before))
    profile.begin(7, before)
    assert before.is_ready()
    within = slow(before)
    profile.end(7, within)
    assert not within.is_ready()
    profile.end(8, within)
    assert within.is_ready()
    assert len([*tmp_path.rglob("*.xplane.pb")]) == 1


@pytest.mark.parametrize("steps", [range(0, 2), range(4, 4), range(4, 3), range(5, 7), range(1, 5, 2)])
def test_steps_that_the_run_has_not_are_refused(run, tmp_path, steps):
    with pytest.raises(ValueError, match=f"{steps.start}:{steps.stop}, must be .* the run has 5 steps"):
        train(run, tmp_path / "run", profile_steps=steps)
    assert not (tmp_path / "run").exists()
    check_profile(run, range(5, 6))
