"""`clipa` in a process that stands still, and says so, at a moment of its training. Started by signal_runs.py.

Arguments: the moment, how often it comes before the process stands still, and those of `clipa`. With the moment `many`
the further arguments are "recipes", a folder of configs, a folder in it for the runs, names, and the flags of several
processes.
"""

import importlib.metadata
import sys
import time
from pathlib import Path

import jax
from orbax.checkpoint import CheckpointManager

import clipa_eqx.cli
import clipa_eqx.train
from clipa_eqx import evaluation
from clipa_eqx.cli._processes import Processes
from clipa_eqx.config import load_run_config
from clipa_eqx.data import load_tokenizer, training_batches
from clipa_eqx.train import _loop, _run_dir


_LONG_S = 90.0


def stand(moment, seconds=_LONG_S):
    """Say where this process is, and stay there, as something does that lasts."""
    sys.stderr.write(f"\nAT {moment}\n")
    sys.stderr.flush()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))


def before(owner, name, moment, nth, seconds=_LONG_S):
    """Stand still before the nth call of a function."""
    original, calls = getattr(owner, name), iter(range(nth))

    def replaced(*arguments, **named):
        if next(calls, None) == nth - 1:
            stand(moment, seconds)
        return original(*arguments, **named)

    setattr(owner, name, replaced)


class Batches:
    """Batches of which one does not come."""

    def __init__(self, nth, *arguments, **named):
        self._batches, self._left = training_batches(*arguments, **named), nth

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1
        if self._left == 0:
            stand("data")
        return next(self._batches)

    def close(self):
        self._batches.close()


def arrange(moment, nth):
    if moment == "open":
        before(_run_dir.RunDirectory, "settle", moment, nth)
    elif moment == "join":
        before(jax.distributed, "initialize", moment, nth, seconds=3)
    elif moment == "compile":
        before(jax.stages.Lowered, "compile", moment, nth)
    elif moment == "data":
        _loop.training_batches = lambda *arguments, **named: Batches(nth, *arguments, **named)
    elif moment == "step":
        before(_loop.HotPath, "advance", moment, nth, seconds=1)
    elif moment == "evaluation":
        make = evaluation.make_evaluators

        def slow(model):
            stand("evaluation")
            return {}

        evaluation.make_evaluators = lambda *arguments: (*make(*arguments), slow)
    elif moment == "save":
        before(CheckpointManager, "save", moment, nth, seconds=1)
    elif moment == "stage":
        before(_loop, "transfer", moment, nth, seconds=1)
    elif moment == "end":
        before(_loop, "save_weights", moment, nth, seconds=1)
    elif moment == "other-version":
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: "0.0.1" if name == "jaxlib" else version(name)
    elif moment != "never":
        raise ValueError(moment)


def train_many(folder, runs, *names):
    """Train one config after the other in this process."""
    flags = {}
    if "--processes.coordinator" in names:
        place = names.index("--processes.coordinator")
        _, coordinator, _, count, _, index = names[place:]
        names, flags = names[:place], {"coordinator": coordinator, "count": int(count), "index": int(index)}
    Processes(**flags).join()
    for name in names:
        config = load_run_config(Path(folder) / f"{name}.json")
        evaluators = evaluation.make_evaluators(config.evaluation, load_tokenizer(config.data.tokenizer))
        clipa_eqx.train.train(config, Path(folder) / runs / name, evaluators=evaluators, console=False)


if __name__ == "__main__":
    moment, nth, *arguments = sys.argv[1:]
    if moment == "many":
        train_many(*arguments[1:])
        sys.exit()
    arrange(moment, int(nth))
    sys.argv[1:] = arguments
    sys.exit(clipa_eqx.cli.main())
