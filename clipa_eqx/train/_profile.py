"""A trace of a few steps by JAX's profiler."""

import sys
from pathlib import Path
from types import TracebackType

import jax
from jaxtyping import PyTree

from ..config import RunConfig


def check_profile(config: RunConfig, steps: range | None) -> None:
    """Make sure that a run has the steps that are to be traced.

    Args:
        config: the run.
        steps: from the first step to the one after the last, counted from 1 over all stages; None: trace nothing.

    Raises:
        ValueError: an empty range, one with gaps, or one that leaves the run.
    """
    total = sum(stage.steps for stage in config.stages)
    if steps is not None and not (steps.step == 1 and 1 <= steps.start < steps.stop <= total + 1):
        raise ValueError(
            f"The steps to profile, {steps.start}:{steps.stop}, must be FIRST:STOP with 1 <= FIRST < STOP <= "
            f"{total + 1}: the run has {total} steps, counted from 1 over all stages, and STOP is not traced."
        )


class Profile:
    """Traces some steps of a run; the files go to `directory`, where TensorBoard and xprof find them.

    A trace holds its steps, from host to device, and nothing of others: the devices are idle when it begins, and have
    done its last step when it ends. Use as a context manager: leaving it amid the steps writes what there is.
    """

    def __init__(self, steps: range | None, directory: Path) -> None:
        """
        Args:
            steps: as `check_profile` takes them.
            directory: where traces go, each into a folder of its own.
        """
        self._steps = steps or range(0)
        self._directory = directory
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def resume(self, done: int) -> None:
        """Leave out, and say so, steps that were trained before this start.

        Args:
            done: steps of the run that are done.
        """
        missed = self._steps[: max(done + 1 - self._steps.start, 0)]
        if missed and not self._tracing:
            self._steps = self._steps[len(missed) :]
            rest = f"only {self._steps.start}:{self._steps.stop} is" if self._steps else "nothing is"
            sys.stderr.write(
                f"The run continues after step {done}, so the steps to profile {missed.start}:{missed.stop} are past: "
                f"{rest} traced\n"
            )

    def begin(self, step: int, state: PyTree) -> None:
        """Before a step, start the trace if the step is its first.

        Args:
            step: number of the step in the run.
            state: what it will start from.
        """
        if self._steps and step == self._steps.start:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Following every Python call would slow the readers down that it looks at.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._tracing = True

    def end(self, step: int, state: PyTree) -> None:
        """After a step, write the trace if the step is its last.

        Args:
            step: number of the step in the run.
            state: what it gave.
        """
        if self._tracing and step == self._steps.stop - 1:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing, self._steps = False, range(0)
            jax.profiler.stop_trace()
