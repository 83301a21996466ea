"""Who reads the parts of batches: this process, or processes of its own; and where each of them stands."""

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from concurrent.futures import Future, InvalidStateError
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ._batch import Arrays, BatchReader, Fault, Part


_CLOSE_S = 2.0
"""How long closing waits for workers to end."""

_FOR_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that reach the whole group of processes, or all those of a machine, and that the parent answers."""

_Faults = tuple[Fault, ...]


class ReaderError(OSError):
    """A reader died or stands still; its message says at which pair."""


@runtime_checkable
class _Worker(Protocol):
    """Reads one part at a time."""

    @property
    def row(self) -> int:
        """The row that is being read."""
        ...

    def read(self, part: Part, into: Arrays) -> _Faults: ...

    def close(self) -> None:
        """Begin to stop."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        ...


class Workers:
    """A fixed number of workers; as many threads may call `read` at once."""

    def __init__(self, reader: BatchReader, *, threads: int, processes: int, most_rows: int) -> None:
        """Start them.

        Args:
            reader: what they do.
            threads: how many work inside this process, with `processes=0`.
            processes: how many have a process of their own; 0: none.
            most_rows: rows of the largest part.
        """
        self.count = processes or threads
        self._reader = reader
        self._closed = threading.Event()
        self._workers: list[_Worker] = [
            _ChildWorker(reader, most_rows) if processes else _OwnWorker(reader, self._closed)
            for _ in range(self.count)
        ]
        self._parts: list[Part | None] = [None] * self.count
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self.count):
            self._idle.put(number)

    def read(self, part: Part, into: Arrays) -> _Faults:
        """Have a part read into arrays; returns what could not be used."""
        number = self._idle.get()
        self._parts[number] = part
        try:
            return self._workers[number].read(part, into)
        finally:
            self._parts[number] = None
            self._idle.put(number)

    def places(self) -> list[tuple[Part, int] | None]:
        """The part and the row that each worker is at; None for one that is idle."""
        return [part and (part, worker.row) for part, worker in zip(tuple(self._parts), self._workers, strict=True)]

    def describe(self) -> str:
        """What each worker is doing, a line each."""
        lines = [
            f"reader {number}: " + (self._reader.describe(*place) if place else "idle")
            for number, place in enumerate(self.places())
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Stop all workers; what they are reading is given up.

        Waits until they have noticed. A thread that still decodes while Python ends is torn out of foreign code, which
        can abort the process.
        """
        self._closed.set()
        for worker in self._workers:
            worker.close()
        deadline = time.monotonic() + _CLOSE_S
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))


class _OwnWorker:
    """Reads in a daemon thread while one of Grain's waits for it.

    A thread that waits for a broken disk cannot be stopped, and Python ends only after Grain's threads have: those can
    be told to give up, and nobody waits for this one.
    """

    def __init__(self, reader: BatchReader, closed: threading.Event) -> None:
        self._reader, self._closed = reader, closed
        self._jobs: queue.SimpleQueue[tuple[Part, Arrays, Future[_Faults]] | None] = queue.SimpleQueue()
        self._done: Future[_Faults] = Future()
        self.row = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def read(self, part: Part, into: Arrays) -> _Faults:
        done = self._done = Future()
        self._jobs.put((part, into, done))
        if self._closed.is_set():
            self.close()
        return done.result()

    def close(self) -> None:
        """Free whoever waits; the thread ends with the row that it is at."""
        self._jobs.put(None)
        with contextlib.suppress(InvalidStateError):
            self._done.set_exception(ReaderError("These batches were closed."))

    def join(self, timeout_s: float) -> None:
        # Garbage may be collected in this very thread.
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            part, into, done = job
            try:
                faults, fault = self._reader.read(part, into, self._note), None
            except BaseException as error:  # whatever it is, who waits for the part must see it
                faults, fault = (), error
            # Whoever waited may have been freed meanwhile.
            with contextlib.suppress(InvalidStateError):
                if fault is None:
                    done.set_result(faults)
                else:
                    done.set_exception(fault)

    def _note(self, row: int) -> None:
        if self._closed.is_set():
            raise ReaderError("These batches were closed.")
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
        # Held back until the child ignores them; this thread's wait until the child has begun.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_PARENT)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
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

    def join(self, timeout_s: float) -> None:
        self._process.join(timeout_s)


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
    for number in _FOR_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_PARENT)
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
