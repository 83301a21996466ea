"""SIGTERM, the request to save and stop: noted at any moment, answered by all processes of a run at the same point.

Clusters send it before they take a machine back, to one process of a run or to all; SLURM is often told to send SIGUSR1
instead, which means the same here. What may be given up stands in `interruptible`: there the main thread is torn out at
once by `Terminated`. Everything else is left alone until the processes next `meet`, where they all learn whether one of
them wishes to stop. Between a part that may be given up and the next meeting nothing may wait for another process,
since that one may have been torn out of its own.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Those that ask a run to save and stop."""
EXIT_CODE = 128 + signal.SIGTERM
"""What a process that SIGTERM ended gives back, as a shell has it: 143."""
_LOOK_S = 1.0
"""How often the other processes' wishes are looked up."""
_ANSWER_S = 10.0
"""How long a process with nothing to save may leave the signal unanswered, as code of others does that waits."""
_LONGEST_WAIT_MS = 24 * 3600 * 1000
"""How long processes wait for each other where they meet; what keeps them apart, data or a compiler, is watched
elsewhere, and a process that dies ends the wait."""
_MEETING = "clipa_eqx"
_WISHES = "clipa_eqx/stop/"


class Terminated(BaseException):
    """SIGTERM came and the work at hand is given up. No `Exception`, lest code that outlives faults swallows it."""


class _Watch:
    """What this process knows of the wish to stop. One for all, as signals are."""

    def __init__(self) -> None:
        self._depth = 0
        self._forget()
        # Counted alike on all processes, as is the first one of this watch.
        self._meetings = 0
        self._first = 1
        self._lock = threading.Lock()

    def _forget(self) -> None:
        self.received = False
        """Whether the signal came."""
        self.agreed = False
        """Whether all processes know and stop."""
        self.raising = False
        """Whether the handler tears the main thread out of what it does."""
        self.unsaved = False
        """Whether more was done than is on disk."""
        self._told = False
        # A call to the service before this process has joined it would abort the process.
        self._joined = _service() is not None

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Watch for the signal; inside another watch, or off the main thread, nothing changes."""
        if self._depth or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth = 1
        self._forget()
        self._first = self._meetings + 1
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._look, args=(reading,), name="SIGTERM", daemon=True)
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        # Python runs handlers between two steps of its main thread. The pipe tells at once, also amid a long call.
        previous_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous_pipe)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(writing)
            thread.join(2 * _LOOK_S)
            self._take_back()
            self._depth = 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self.raising and not self.agreed:
            self.raising = False
            raise Terminated

    def _look(self, pipe: int) -> None:
        """Until the pipe is closed: hear the signal, tell the other processes, hear of theirs."""
        came: float | None = None
        while True:
            if select.select([pipe], [], [], _LOOK_S)[0]:
                numbers = os.read(pipe, 64)
                if not numbers:
                    os.close(pipe)
                    return
                if came is None and not set(SIGNALS).isdisjoint(numbers):
                    came = time.monotonic()
            # The service goes away with the process that holds it.
            with contextlib.suppress(RuntimeError):
                if self._joined and came is not None:
                    self._tell()
                elif self._joined and self._wishes():
                    signal.pthread_kill(_main_ident(), signal.SIGTERM)
            if came is not None and time.monotonic() - came > _ANSWER_S and not (self.agreed or self.unsaved):
                self._leave()

    def _leave(self) -> None:
        """End without the main thread, which waits in code of others. Nothing is lost."""
        sys.stderr.write("clipa: stopped by SIGTERM with nothing to save; the same command goes on\n")
        sys.stderr.flush()
        state = _service()
        if state is not None and state.process_id == 0:
            time.sleep(2 * _LOOK_S)  # The others leave first: without the service that it holds they would be aborted.
        os._exit(EXIT_CODE)

    def _tell(self) -> None:
        """Tell all processes that this one wishes to stop at the next meeting."""
        state = _service()
        # No process is past that meeting before this one joins it, for which it waits here.
        with self._lock:
            if state is not None and not self._told:
                state.client.key_value_set(
                    f"{_WISHES}{state.process_id}", str(self._meetings + 1), allow_overwrite=True
                )
                self._told = True

    def _take_back(self) -> None:
        """Let what this process wished not stop a later run in the same processes."""
        state = _service()
        if state is not None and self._told:
            with contextlib.suppress(RuntimeError):
                state.client.key_value_delete(f"{_WISHES}{state.process_id}")

    def _wishes(self) -> list[int]:
        """At which meetings processes wish to stop."""
        state = _service()
        if state is None:
            return []
        meetings = [int(value) for _, value in state.client.key_value_dir_get(_WISHES)]
        return [meeting for meeting in meetings if meeting >= self._first]

    def meet(self) -> None:
        if self.agreed:
            raise Terminated
        state = _service()
        self._joined = state is not None
        if state is not None:
            if self.received:
                self._tell()
            with self._lock:
                self._meetings += 1
            try:
                state.client.wait_at_barrier(_MEETING, _LONGEST_WAIT_MS)
                self.agreed = any(meeting <= self._meetings for meeting in self._wishes())
            except RuntimeError as error:
                raise ConnectionError(f"Another process of this run has ended: {str(error).splitlines()[0]}") from error
        elif self.received:
            self.agreed = True
        if self.agreed:
            raise Terminated


def _service() -> Any:
    """JAX's state of several processes, with the service through which they know of each other; None: one process."""
    # This file is read before JAX is, which takes seconds in which the signal may come.
    state = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    return state if state is not None and state.client is not None and state.num_processes > 1 else None


def _main_ident() -> int:
    ident = threading.main_thread().ident
    if ident is None:
        raise RuntimeError("The main thread has not begun.")
    return ident


_watch = _Watch()


def watching() -> contextlib.AbstractContextManager[None]:
    """Answer SIGTERM from here on, as this module says. Python takes signals on its main thread only: off it, nothing
    is watched, but the wishes of other processes are heeded."""
    return _watch.on()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What may be given up: SIGTERM ends it by `Terminated`, at once if it came before."""
    before = _watch.raising
    if _watch.received and not _watch.agreed:
        raise Terminated
    _watch.raising = True
    try:
        yield
    finally:
        _watch.raising = before


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """What must not be torn apart, inside something that may be given up."""
    before, _watch.raising = _watch.raising, False
    try:
        yield
    finally:
        _watch.raising = before


def meet() -> None:
    """Wait for all processes of the run; every one of them calls it, as often as the others.

    Raises:
        Terminated: on all of them, if SIGTERM came to one.
        ConnectionError: one of them has ended.
    """
    _watch.meet()


def conclude() -> None:
    """After `Terminated`: once it returns, all processes know that they stop, and each is at the same meeting."""
    with contextlib.suppress(Terminated):
        _watch.meet()


def hold(unsaved: bool) -> None:
    """Say whether more was done than is on disk. Where nothing is lost, a process whose main thread does not answer
    the signal within ten seconds is ended."""
    _watch.unsaved = unsaved
