"""What happens in every step, in an order that leaves the devices no gap."""

import time
from collections import deque
from collections.abc import Callable
from typing import cast

import jax
from jax.sharding import Mesh

from ..data import BatchIterator, Fault
from ..sharding import to_global
from ..termination import interruptible, meet, Terminated
from ._metrics import StageLog
from ._state import TrainState
from ._step import DeviceBatch, StepMetrics


# Steps that may be queued on the devices before the host waits: enough to hide the host's work, few enough to
# keep the queued batches' memory small.
_STEPS_AHEAD = 2


class HotPath:
    """Starts one step after the other, the batch of the next already on its way.

    A step that is started runs by itself, while copying a batch out of ordinary memory occupies the host. So the batch
    of the next step is put as soon as a step is started, and only then does the host wait: here for an earlier step,
    afterwards for whatever the caller wants of this one, metrics, a checkpoint or an evaluation. Were it put after
    that, the devices would idle through the copy.
    """

    def __init__(
        self,
        train_step: Callable[[TrainState, DeviceBatch], tuple[TrainState, StepMetrics]],
        batches: BatchIterator,
        mesh: Mesh,
        log: StageLog,
        *,
        steps: int,
    ) -> None:
        """Put the first batch.

        Args:
            train_step: the compiled step.
            batches: rows of this process.
            mesh: the devices.
            log: takes metrics, skipped pictures and the time spent waiting for data.
            steps: how many will be started, at least 1; no more batches are read.
        """
        self._train_step, self._batches, self._mesh, self._log = train_step, batches, mesh, log
        self._left = steps
        self._queued: deque[jax.Array] = deque()
        self._next = self._put_next()

    def advance(self, step: int, state: TrainState) -> TrainState:
        """Start a step; returns the state that it will give.

        A step that one process has started must be started by all. So they meet before it, each with its batch.

        Args:
            step: its number in the stage, one more at each call.
            state: given up.

        Raises:
            Exception: what hindered the readers at the batch of this step. It was found out during the step before,
                but belongs here: that one is on record, and saved where it was to be.
            Terminated: SIGTERM came, and the step is not started.
        """
        if isinstance(self._next, BaseException):
            raise self._next
        meet()
        rows, faults = self._next
        state, metrics = self._train_step(state, rows)
        if self._left:
            self._next = self._put_next()
        self._log.add(step, metrics, faults=faults)
        self._queued.append(metrics["loss"])
        if len(self._queued) > _STEPS_AHEAD:
            self._queued.popleft().block_until_ready()
        return state

    def _put_next(self) -> tuple[DeviceBatch, tuple[Fault, ...]] | BaseException:
        """Begin to copy the next batch to the devices; returns it and what was skipped for it."""
        self._left -= 1
        tick = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation("wait for data"), interruptible():
                batch = next(self._batches)
        except (Exception, Terminated) as error:
            return error
        self._log.waited(time.perf_counter() - tick)
        with jax.profiler.TraceAnnotation("put batch"):
            rows = {"pixels": batch.pixels, "tokens": batch.tokens, "word_class": batch.word_class}
            return cast(DeviceBatch, to_global(rows, self._mesh)), batch.faults
