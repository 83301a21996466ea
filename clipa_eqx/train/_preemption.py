"""Machines that are taken back: SIGTERM is a request to save and stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Watches for SIGTERM while a run trains.

    In one process the signal is noted here. With several, JAX's own service sees it on whichever process receives it
    and names a step that all of them reach, so that all stop at the same one. Off the main thread of a single process,
    where Python takes no signals, nothing is watched.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None
        self._watches = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Preemption":
        if self._watches:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watches:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step.

        Args:
            step: counts up by one at each call, over all stages, alike on all processes.
        """
        return self._received or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
