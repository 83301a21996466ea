"""The order within a step: the next batch is on its way before anything is waited for, and belongs to its own step."""

import itertools

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import tiny_batch, TINY_MODEL, tiny_run

from clipa_eqx.data import Batch, Fault, ReaderError
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train import init_state, Records, RunDirectory
from clipa_eqx.train._hot_path import HotPath
from clipa_eqx.train._metrics import StageLog


class Batches:
    """Batches with a skipped picture each, of which so many can be read; takes down what happens."""

    def __init__(self, events, readable=1000):
        self._events, self._readable, self._number = events, readable, 0

    def __iter__(self):
        return self

    def __next__(self):
        self._number += 1
        if self._number > self._readable:
            raise ReaderError("the disk is gone")
        self._events.append(f"put {self._number}")
        return Batch(**tiny_batch(self._number), faults=(Fault(f"picture {self._number}", "cut short", row=0),))

    def close(self):
        pass


class Loss:
    """The loss of a step, on devices that are slow."""

    def __init__(self, events, step):
        self._events, self._step = events, step

    def block_until_ready(self):
        self._events.append(f"wait {self._step}")

    def __array__(self, dtype=None, copy=None):
        self._events.append(f"read {self._step}")
        return np.zeros((), np.float32)


@pytest.fixture(scope="module")
def state():
    start = lambda: init_state(make_clip(TINY_MODEL, key=jax.random.key(0)), optax.identity(), key=jax.random.key(1))
    return eqx.filter_eval_shape(start)


@pytest.fixture
def start(tmp_path, state):
    """A function that gives the hot path over some batches, its log and the directory."""
    paths = RunDirectory(tmp_path / "run")
    paths.root.mkdir()
    log = StageLog(tiny_run(tmp_path), 0, paths, start=0, write=True, console=False)

    def start(batches, events, steps=6):
        numbers = itertools.count(1)

        def train_step(state, rows):
            step = next(numbers)
            np.testing.assert_array_equal(rows["tokens"], tiny_batch(step)["tokens"])
            events.append(f"start {step}")
            names = ("accuracy", "learning_rate", "grad_norm", "inverse_temperature")
            return state, {"loss": Loss(events, step), **dict.fromkeys(names, np.zeros((), np.float32))}

        log.compiled(5.0)
        return HotPath(train_step, batches, make_mesh(), log, steps=steps), log, paths

    with log:
        yield start


def test_the_next_batch_is_put_while_a_step_runs(start, state):
    events = []
    hot_path, log, _ = start(Batches(events), events)
    for step in (1, 2, 3):
        state = hot_path.advance(step, state)
    assert events == ["put 1", "start 1", "put 2", "start 2", "put 3", "start 3", "put 4", "wait 1"]
    log.flush()
    assert events[8:] == ["read 1", "read 2", "read 3"]
    hot_path.advance(4, state)
    assert events[11:] == ["start 4", "put 5", "wait 2"]


def test_no_batch_is_read_that_no_step_is_for(start, state):
    events = []
    hot_path, _, _ = start(Batches(events, readable=2), events, steps=2)
    for step in (1, 2):
        state = hot_path.advance(step, state)
    assert events == ["put 1", "start 1", "put 2", "start 2"]


def test_skipped_pictures_are_on_record_with_their_step_and_not_before(start, state):
    hot_path, _, paths = start(Batches([]), [])
    for step in (1, 2):
        state = hot_path.advance(step, state)
        keys = [row["key"] for row in Records(paths.skipped).read()]
        assert keys == [f"picture {number}" for number in range(1, step + 1)]


def test_a_fault_of_the_readers_ends_its_own_step(start, state):
    """The one before it is started, recorded and can be saved."""
    events = []
    hot_path, log, paths = start(Batches(events, readable=2), events)
    for step in (1, 2):
        state = hot_path.advance(step, state)
    log.flush()
    assert [row["step"] for row in Records(paths.metrics).read()] == [1, 2]
    with pytest.raises(ReaderError, match="the disk is gone"):
        hot_path.advance(3, state)
    assert "start 3" not in events


def test_waiting_for_data_counts_in_the_block_in_which_it_happens(start, state, monkeypatch):
    """Each batch takes ten seconds to read; the first block lasts for three of them and 20 seconds more."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    class Slow(Batches):
        def __next__(self):
            nonlocal now
            now += 10
            return super().__next__()

    hot_path, log, paths = start(Slow([]), [])
    for step, other_s in ((1, 0), (2, 20), (3, 30)):
        state = hot_path.advance(step, state)
        now += other_s
        if other_s:
            log.flush()
    first, second = (row for row in Records(paths.metrics).read() if "data_wait" in row)
    assert (first["step"], first["data_wait"], first["compile_s"]) == (2, 30 / 50, 5.0)
    assert (second["step"], second["data_wait"], "compile_s" in second) == (3, 10 / 40, False)
