"""Indexes of many shards, built by several processes."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ..formats._format import ShardFormat
from ..io._remote import RemoteFile
from ..text._text_cache import build_text_cache, open_text_cache, TextRules
from ._index import open_shard_index, ShardIndex


@dataclass(frozen=True)
class ShardWork:
    """What is built for a shard: its index and, where there are rules for texts, the tokens of its captions."""

    format: ShardFormat
    rules: TextRules | None = None

    def is_done(self, index: ShardIndex | None) -> bool:
        """Whether all is there, given the index that was found."""
        return index is not None and (self.rules is None or open_text_cache(index, self.rules) is not None)

    def do(self, shard: Path | RemoteFile) -> None:
        """Build what is not there."""
        index = open_shard_index(shard, self.format)
        if self.rules is not None and not self.is_done(index):
            build_text_cache(index, self.rules)


def build_indexes(
    shards: Sequence[Path | RemoteFile], work: ShardWork, *, processes: int, report: Callable[[int], None]
) -> None:
    """Build the index of each shard.

    The file of an index appears as a whole once its shard is read, so whatever was built stays when this is
    interrupted or killed. A shard that cannot be read, or whose reader dies, does not stop the others.

    Args:
        shards: to be indexed.
        work: what is built.
        processes: how many read at once, at least 1.
        report: called with the number of shards done, whenever one is.

    Raises:
        OSError: some shards could not be indexed; the first is named.
    """
    todo, failures = iter(shards), list[str]()
    with _start_workers(min(processes, len(shards)), work) as workers:
        idle = list(workers)
        done = 0
        while done < len(shards):
            while idle and (shard := next(todo, None)) is not None:
                idle.pop().give(shard)
            ready = wait([worker.connection for worker in workers if worker.shard is not None])
            for worker in [worker for worker in workers if worker.connection in ready]:
                if fault := worker.finish():
                    failures.append(fault)
                idle.append(worker)
                done += 1
                report(done)
    if failures:
        raise OSError(
            f"{len(failures)} of {len(shards)} shards could not be indexed, the first: {failures[0]}. The others are "
            "done: mend or remove these and start again."
        )


class _Worker:
    """A process that indexes one shard at a time; a new one takes its place when it dies."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work
        self.shard: Path | RemoteFile | None = None
        """What it is at work on."""
        self._start()

    def _start(self) -> None:
        # A forked process would share the locks of whatever threads run here.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._work), daemon=True)
        self._process.start()
        other.close()

    def give(self, shard: Path | RemoteFile) -> None:
        """Let it start on a shard; how that went is for `finish` to say."""
        self.shard = shard
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(shard)

    def finish(self) -> str | None:
        """What went wrong with the shard, once the connection is ready; None if nothing did."""
        shard, self.shard = self.shard, None
        try:
            fault = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.connection.close()
            fault = f"the process that read it died with exit code {self._process.exitcode}"
            self._start()
        return fault and f"{shard}: {fault}"

    def stop(self) -> None:
        """End it, whatever it is at."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def _start_workers(count: int, work: ShardWork) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        workers += (_Worker(work) for _ in range(count))
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def _serve(connection: Connection, work: ShardWork) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            shard = connection.recv()
        except EOFError:
            return
        try:
            work.do(shard)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
        else:
            connection.send(None)
