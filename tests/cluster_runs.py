"""Longer proofs of runs over several processes: signals at every moment, random stops, every recipe of the catalogue.

`make test-cluster` runs it. With CLIPA_SIGNAL_TABLE=FILE the signals are also written there as a Markdown table, as it
stands in docs/hosts.md.
"""

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary
from signal_runs import newest_step, start, stopped

from clipa_eqx.config import CheckpointConfig, EvalConfig
from clipa_eqx.models import load_weights
from clipa_eqx.recipes import recipes, run_config, scale_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    write_shards(directory / "train")
    write_shards(directory / "retrieval", pairs=8, shards=1)
    write_vocabulary(directory / "vocab.txt")
    return directory


def _three_stages(data, **fields):
    """Few patches, all of them, and the table of positions stretched once more."""
    evaluation = EvalConfig(retrieval=str(data / "retrieval"), every_steps=3, ema=True)
    run = tiny_run(data, evaluation=evaluation, checkpoint=CheckpointConfig(2), **fields)
    few, full = (dataclasses.replace(stage, ema_decay=0.9) for stage in run.stages)
    tune = dataclasses.replace(
        full, name="tune", image_size=48, image_reduction="random", keep_patches=9, position_transfer="resample"
    )
    vision = dataclasses.replace(run.model.vision, image_size=48, position="frozen")
    model = dataclasses.replace(run.model, vision=vision)
    return dataclasses.replace(run, model=model, stages=(few, full, tune))


def _result(run_dir):
    names = ("model.safetensors", "model-ema.safetensors")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "loss" not in row]
    return jax.tree.leaves([load_weights(run_dir / name) for name in names if (run_dir / name).exists()]), evaluations


def _difference(got, wanted):
    return max(np.abs(one - other).max() for one, other in zip(got, wanted, strict=True))


@pytest.fixture(scope="module")
def plain(data):
    write_config(data / "run.json", _three_stages(data))
    run = start(["train", "--config", data / "run.json", "--run-dir", data / "plain"], cache=data / "cache")
    assert run.end()[0] == [0], run.said
    return _result(data / "plain")


# Moment, how often it comes first, processes, those that are told (None: all), whether the run was resumed, checkpoint.
SIGNALS = [
    ("open", 1, 1, None, False, None),
    ("open", 1, 2, [1], False, None),
    ("join", 1, 2, None, False, None),
    ("compile", 1, 1, None, False, ("few", 0)),
    ("compile", 1, 1, None, True, ("few", 2)),
    ("compile", 1, 2, [0], False, ("few", 0)),
    ("compile", 1, 2, None, True, ("few", 2)),
    ("data", 1, 1, None, True, ("few", 2)),
    ("data", 3, 2, [1], False, ("few", 2)),
    ("step", 3, 2, [0], False, ("few", 2)),
    ("evaluation", 1, 1, None, False, ("few", 3)),
    ("evaluation", 1, 2, [1], False, ("few", 3)),
    ("save", 1, 1, None, True, ("few", 4)),
    ("save", 1, 2, [0], False, ("few", 2)),
    ("stage", 2, 2, [1], False, ("all", 0)),
    ("end", 1, 1, None, False, ("tune", 4)),
]
MOMENTS = {
    "open": "opening the data",
    "join": "joining the other processes",
    "compile": "compiling the step",
    "data": "waiting for a batch that does not come",
    "step": "before a step",
    "evaluation": "in an evaluation that takes long",
    "save": "beginning a checkpoint",
    "stage": "between two stages",
    "end": "writing the final weights",
}


@pytest.fixture(scope="module")
def table():
    rows = [
        "| moment | run | processes | told | seconds to exit | exit code | checkpoint |",
        "|---|---|---|---|---|---|---|",
    ]
    yield rows
    if path := os.environ.get("CLIPA_SIGNAL_TABLE"):
        Path(path).write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(("moment", "nth", "processes", "to", "resumed", "saved"), SIGNALS)
def test_sigterm_saves_and_ends(moment, nth, processes, to, resumed, saved, data, plain, table, tmp_path):
    arguments = ["train", "--config", data / "run.json", "--run-dir", tmp_path / "run"]
    how = {"processes": processes, "cache": data / "cache"}
    if resumed:
        assert stopped(arguments, "step", nth=3, **how)[0] == [143] * processes
    codes, seconds, said = stopped(arguments, moment, nth=nth, to=to, times=2, **how)
    code = 0 if moment == "end" else 143  # Nothing is left to do but that.
    assert codes == [code] * processes, said
    assert newest_step(tmp_path / "run") == saved
    assert seconds < 30
    told = "all" if to is None else f"number {to[0]}"
    step = f"{saved[0]} {saved[1]}" if saved else "nothing was done"
    row = [MOMENTS[moment], "resumed" if resumed else "fresh", processes, told, f"{seconds:.1f}", code, step]
    table.append("| " + " | ".join(map(str, row)) + " |")


@pytest.mark.parametrize("shard", ["none", "optimizer", "all"])
def test_three_stages_stopped_at_random_are_the_run_that_was_not(shard, data, plain):
    """Ten stops, by SIGTERM to some process or by SIGKILL to all, each followed by another number of processes."""
    rng = random.Random(shard)
    run_dir = data / shard
    arguments = ["train", "--config", data / "run.json", "--run-dir", run_dir, "--set", f"shard={shard}"]
    # One of the three ways to split in full, for the time that it takes.
    for turn in range(10 if shard == "optimizer" else 2):
        processes = turn % 4 + 1
        run = start(arguments, processes=processes, cache=data / "cache")
        time.sleep(rng.uniform(3.0, 12.0) * (1 + processes / 2))
        number = rng.choice([signal.SIGTERM, signal.SIGKILL])
        for index in range(processes) if number == signal.SIGKILL else [rng.randrange(processes)]:
            run.processes[index].send_signal(number)
        codes, _ = run.end()
        assert set(codes) <= {0, 143, -int(number)}, (number, run.said)
    run = start(arguments, processes=4, cache=data / "cache")
    assert run.end()[0] == [0] * 4, run.said
    weights, evaluations = _result(run_dir)
    assert _difference(weights, plain[0]) <= 1e-5
    assert [(row["stage"], row["step"]) for row in evaluations] == [(row["stage"], row["step"]) for row in plain[1]]


def _tiny(recipe, data):
    """A recipe with all its stages, rules and reductions, of two steps each, and towers of width 16."""
    recipe = scale_recipe(recipe, 1e-9)
    small = {"width": 16, "depth": 1, "heads": 2, "hidden": 32}
    vision = dataclasses.replace(recipe.model.vision, **small)
    # The small vocabulary is of word pieces, without a token that ends a text.
    pool = "last" if recipe.model.text.pool == "end" else recipe.model.text.pool
    text = dataclasses.replace(recipe.model.text, **small, vocab_size=32, end_id=-1, pool=pool)
    stages = tuple(
        dataclasses.replace(
            stage, batch_size=8, samples=16, optim=dataclasses.replace(stage.optim, warmup_steps=1, cooldown_steps=0)
        )
        for stage in recipe.stages
    )
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, vision=vision, text=text, embed=16), stages=stages
    )
    run = run_config(recipe, data=dataclasses.replace(tiny_run(data).data, caption_tokens=64))
    evaluation = dataclasses.replace(run.evaluation, retrieval=str(data / "retrieval"), ema=False)
    return dataclasses.replace(run, evaluation=evaluation, log_every_steps=1)


def test_every_recipe_trains_on_two_processes_as_on_one(data):
    """Through all of its stages, with evaluation."""
    names = list(recipes)
    for name in names:
        write_config(data / f"{name}.json", _tiny(recipes[name], data))
    # One after the other in the same processes, which start but once.
    for processes in (1, 2):
        arguments = ["recipes", data, f"of-{processes}", *names]
        run = start(arguments, processes=processes, moment="many", cache=data / f"cache-{processes}")
        codes, _ = run.end(timeout_s=420)
        assert codes == [0] * processes, run.said
    worst = 0.0
    for name in names:
        (one, measured), (two, again) = (_result(data / f"of-{processes}" / name) for processes in (1, 2))
        assert [row["stage"] for row in measured] == [stage.name for stage in recipes[name].stages]
        for row, other in zip(measured, again, strict=True):
            assert row == pytest.approx(other)
        difference = _difference(two, one)
        print(f"{name}: largest difference of weights {difference:.1e}")  # noqa: T201
        worst = max(worst, difference)
    assert worst <= 1e-5
