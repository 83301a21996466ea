"""Readers: threads and processes read alike, ahead but not too far; those that die or stand still are named."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import NumberTexts, pair_members, write_tar

from clipa_eqx.config import DataConfig, StageConfig
from clipa_eqx.data import open_pairs, Pair, ReaderError, training_batches


COUNT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_tar(folder / "0.tar", pair_members(COUNT))
    return folder


def start(pairs, *, batch_size=200, start_step=0, process=(0, 1), **options):
    return training_batches(
        pairs,
        NumberTexts(),
        DataConfig(caption_tokens=3, **options),
        StageConfig(batch_size=batch_size, image_size=8),
        seed=3,
        process_index=process[0],
        process_count=process[1],
        start_step=start_step,
    )


def take(iterator, steps):
    try:
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


class Counted:
    """A source that counts its reads and can stand still at a pair."""

    skipped, fingerprint = {}, "counted"

    def __init__(self, pairs, stuck_at=None):
        self.pairs, self.stuck_at, self.reads, self.free = pairs, stuck_at, 0, threading.Event()

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        self.reads += 1
        if index == self.stuck_at:
            self.free.wait()
        return self.pairs[index]

    def key(self, index):
        return self.pairs.key(index)

    def captions(self, index):
        return self.pairs.captions(index)


class Deadly:
    """A source whose reader process dies at a pair, as under a memory killer."""

    skipped, fingerprint = {}, "deadly"

    def __init__(self, pairs, at):
        self.pairs, self.at = pairs, at

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index) -> Pair:
        if index == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.pairs[index]

    def key(self, index):
        return self.pairs.key(index)

    def captions(self, index):
        return self.pairs.captions(index)


def test_processes_read_what_threads_read(folder):
    pairs = open_pairs(DataConfig(train=str(folder)))
    for threads, processes in zip(take(start(pairs), 3), take(start(pairs, processes=2), 3), strict=True):
        for name in ("pixels", "tokens", "word_class"):
            assert (getattr(threads, name) == getattr(processes, name)).all()
        assert threads.pixels.flags.c_contiguous


def test_no_more_is_read_ahead_than_asked_for(folder):
    pairs = Counted(open_pairs(DataConfig(train=str(folder))))
    iterator = start(pairs, batch_size=20, prefetch=3)
    next(iterator)
    deadline = time.monotonic() + 20
    while pairs.reads < 3 * 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert pairs.reads == 3 * 20
    iterator.close()


def test_a_stall_is_an_error_that_names_the_pair(folder):
    pairs = Counted(open_pairs(DataConfig(train=str(folder))), stuck_at=7)
    iterator = start(pairs, stall_timeout_s=0.5)
    with pytest.raises(ReaderError, match=r"(?s)Nothing was read for 0.5 s.*reader \d: 0.tar/000000007 \(pair 7, row"):
        list(itertools.islice(iterator, 3))
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    pairs.free.set()


STUCK = """
import sys, threading
from clipa_eqx.config import DataConfig, StageConfig
from clipa_eqx.data import open_pairs, training_batches
from data_files import NumberTexts
from test_data_readers import Counted

pairs = Counted(open_pairs(DataConfig(train=sys.argv[1])), stuck_at=7)
for batch in training_batches(pairs, NumberTexts(), DataConfig(caption_tokens=3, stall_timeout_s=0.5),
                              StageConfig(batch_size=20, image_size=8), seed=3):
    pass
"""


def test_a_run_that_stalls_ends(folder, tmp_path):
    """Although its thread cannot be stopped."""
    path = tmp_path / "stuck.py"
    path.write_text(STUCK)
    done = subprocess.run([sys.executable, path, folder], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ReaderError: Nothing was read for 0.5 s" in done.stderr


def test_a_dead_process_is_an_error_that_names_the_pair(folder):
    iterator = start(Deadly(open_pairs(DataConfig(train=str(folder))), at=11), processes=1)
    with pytest.raises(ReaderError, match=r"ended with exit code -9 while it read 0.tar/000000011 \(pair 11, row"):
        list(itertools.islice(iterator, 3))
    iterator.close()


def test_faults_inside_a_process_are_raised_as_in_a_thread(folder, tmp_path):
    path = write_tar(tmp_path / "x.tar", pair_members(5, image=b"no picture"))
    with pytest.raises(ValueError, match="64 pictures in a row"):
        take(start(open_pairs(DataConfig(train=str(path))), processes=1), 1)


def test_readers_end_with_their_iterator(folder):
    pairs = open_pairs(DataConfig(train=str(folder)))
    before = threading.active_count()
    iterator = start(pairs, threads=4)
    next(iterator)
    assert threading.active_count() > before + 1
    del iterator
    gc.collect()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


SCRIPT = """
import sys
from clipa_eqx.config import DataConfig, StageConfig
from clipa_eqx.data import open_pairs, training_batches
from data_files import NumberTexts

if __name__ == "__main__":
    folder, processes, step, index, count = sys.argv[1], *map(int, sys.argv[2:])
    batches = training_batches(open_pairs(DataConfig(train=folder)), NumberTexts(),
        DataConfig(caption_tokens=2, processes=processes, threads=3, prefetch=2),
        StageConfig(batch_size=20, image_size=8), seed=5, process_index=index, process_count=count, start_step=step)
    for batch in batches:
        print(*batch.tokens[:, 0], flush=True)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "read.py"
    path.write_text(SCRIPT)
    return path


def environment():
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}


def run_script(script, folder, processes, step=0, process=(0, 1)):
    arguments = [sys.executable, script, folder, processes, step, *process]
    return subprocess.Popen(
        [str(item) for item in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def alive(pids):
    return [
        pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_reader_process_does_not_outlive_its_parent(script, folder, sent):
    process = run_script(script, folder, 2)
    process.stdout.readline()
    readers = children(process.pid)
    assert len(alive(readers)) >= 2
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -sent
    assert ("KeyboardInterrupt" in err) == (sent == signal.SIGINT)
    deadline = time.monotonic() + 20
    while alive(readers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(readers)


def killed_after(script, folder, lines, **options):
    """The pairs of the steps that a run gave before it was killed without warning."""
    process = run_script(script, folder, **options)
    rows = [process.stdout.readline().split() for _ in range(lines)]
    process.kill()
    process.communicate()
    return [[int(number) for number in row] for row in rows]


def test_killed_and_started_with_other_readers_and_processes(script, folder):
    """An epoch of 15 steps: on one process with two readers, on two with threads, on one with another reader."""
    pairs = open_pairs(DataConfig(train=str(folder)))
    layouts = [(0, 4, 1, 2), (4, 9, 2, 0), (9, 15, 1, 1)]
    seen = []
    for first, stop, count, processes in layouts:
        for index in range(count):
            taken = killed_after(script, folder, stop - first, processes=processes, step=first, process=(index, count))
            unbroken = training_batches(
                pairs,
                NumberTexts(),
                DataConfig(caption_tokens=2),
                StageConfig(batch_size=20, image_size=8),
                seed=5,
                process_index=index,
                process_count=count,
            )
            assert taken == [batch.tokens[:, 0].tolist() for batch in take(unbroken, stop)[first:]]
            seen += taken
    assert (np.sort(np.concatenate(seen)) == np.arange(COUNT)).all()
