"""Threads that read parts of batches in the order in which they are asked for, alone or each with a process behind it.

A Python thread that waits for a broken disk cannot be stopped, so all are daemons: a run that ends does not wait.
"""

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ._batch import Arrays, BatchReader, Fault, Part


_IDLE = -1
_CLOSE_S = 2.0
"""How long closing waits for a reader to notice."""

_Faults = tuple[Fault, ...]


class ReaderError(RuntimeError):
    """A reader died or stands still; its message says at which pair."""


@runtime_checkable
class _Worker(Protocol):
    """Reads one part at a time."""

    @property
    def row(self) -> int:
        """The row that is being read."""
        ...

    def read(self, part: Part, into: Arrays) -> _Faults: ...

    def close(self) -> None: ...


class _Job(NamedTuple):
    part: Part
    into: Arrays
    done: "Future[_Faults]"


class Readers:
    """A fixed number of readers. Each takes the oldest part that nobody has begun."""

    def __init__(self, reader: BatchReader, *, threads: int, processes: int, most_rows: int) -> None:
        """Start them.

        Args:
            reader: what they do.
            threads: readers of this process, with `processes=0`.
            processes: readers that are processes of their own; 0: none.
            most_rows: rows of the largest part.
        """
        self._reader = reader
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._parts: dict[int, Part] = {}
        self._closed = threading.Event()
        self._workers: list[_Worker] = [
            _ChildWorker(reader, most_rows) if processes else _ThreadWorker(reader, self._closed)
            for _ in range(processes or threads)
        ]
        self._threads = [
            threading.Thread(target=_serve_jobs, args=(self._jobs, worker, number, self._parts), daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, part: Part, into: Arrays) -> "Future[_Faults]":
        """Have a part read into arrays; the result is what could not be used."""
        job = _Job(part, into, Future())
        self._jobs.put(job)
        return job.done

    def row_of(self, part: Part) -> int:
        """The row of a part that is being read; -1 before it is begun and after it is done."""
        numbers = [number for number, doing in tuple(self._parts.items()) if doing == part]
        return self._workers[numbers[0]].row if numbers else _IDLE

    def describe(self) -> str:
        """What each reader is doing, a line each."""
        doing = dict(self._parts)
        lines = [
            f"reader {number}: " + (self._reader.describe(doing[number], worker.row) if number in doing else "idle")
            for number, worker in enumerate(self._workers)
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Stop all readers; what they are reading is given up."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for worker in self._workers:
            worker.close()
        deadline = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _serve_jobs(jobs: "queue.SimpleQueue[_Job | None]", worker: _Worker, number: int, parts: dict[int, Part]) -> None:
    while (job := jobs.get()) is not None:
        parts[number] = job.part
        try:
            faults = worker.read(job.part, job.into)
        except BaseException as error:  # whatever it is, the thread that waits for the batch must see it
            job.done.set_exception(error)
        else:
            job.done.set_result(faults)
        finally:
            del parts[number]


class _ThreadWorker:
    def __init__(self, reader: BatchReader, closed: threading.Event) -> None:
        self._reader, self._closed = reader, closed
        self.row = 0

    def read(self, part: Part, into: Arrays) -> _Faults:
        return self._reader.read(part, into, self._note)

    def close(self) -> None:
        """Nothing to do: the next row sees that the readers are closed."""

    def _note(self, row: int) -> None:
        if self._closed.is_set():
            raise ReaderError("The readers were closed.")
        self.row = row


class _ChildWorker:
    """Has a process of its own, which writes rows into memory that both see.

    The memory has no name in the file system, so it goes with the last process however that ends.
    """

    def __init__(self, reader: BatchReader, most_rows: int) -> None:
        # A fork would copy locks that other threads of a JAX process hold.
        context = multiprocessing.get_context("spawn")
        self._reader = reader
        sizes = [array.nbytes for array in reader.allocate(most_rows)]
        self._memory = context.RawArray("B", sum(sizes))
        self._row = context.RawValue("q", 0)
        self._arrays = _view(self._memory, reader, most_rows)
        self._connection, other = context.Pipe()
        arguments = (reader, most_rows, other, self._memory, self._row)
        self._process = context.Process(target=_serve_parent, args=arguments, daemon=True)
        self._process.start()
        other.close()

    @property
    def row(self) -> int:
        return self._row.value

    def read(self, part: Part, into: Arrays) -> _Faults:
        self._row.value = part.first
        try:
            self._connection.send(part)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(_CLOSE_S)
            raise ReaderError(
                f"Reader process {self._process.pid} ended with exit code {self._process.exitcode} while it read "
                f"{self._reader.describe(part, self.row)}. A negative code is a signal; -9 often means that memory ran "
                "out: use fewer processes."
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        for target, source in zip(into, self._arrays, strict=True):
            target[:] = source[: part.stop - part.first]
        return answer

    def close(self) -> None:
        # Its end wakes the thread that waits for its answer.
        self._process.kill()
        self._process.join(_CLOSE_S)


def _view(memory: Any, reader: BatchReader, rows: int) -> Arrays:
    """Arrays for so many rows inside a block of memory."""
    raw = np.frombuffer(memory, np.uint8)
    arrays: list[np.ndarray] = []
    start = 0
    for like in reader.allocate(rows):
        arrays.append(raw[start : start + like.nbytes].view(like.dtype).reshape(like.shape))
        start += like.nbytes
    return Arrays(*arrays)


def _serve_parent(
    reader: BatchReader,
    most_rows: int,
    connection: Connection,
    memory: Any,
    row: Any,
) -> None:
    """What a reader process does until its parent ends or hangs up."""
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arrays = _view(memory, reader, most_rows)

    def note(number: int) -> None:
        row.value = number

    with contextlib.suppress(EOFError, OSError):
        while True:
            part: Part = connection.recv()
            rows = Arrays(*(array[: part.stop - part.first] for array in arrays))
            try:
                answer = reader.read(part, rows, note)
            except Exception as error:  # the parent raises it
                answer = error
            connection.send(answer)
