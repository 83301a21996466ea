"""What a stage reports: metrics read off the devices in blocks, then JSON lines, event files and the live line."""

import contextlib
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
from tensorboardX import SummaryWriter

from ..config import RunConfig, StageConfig
from ..data import Fault
from ._checkpoint import newest_checkpoint
from ._console import LiveLine
from ._records import Records
from ._run_dir import RunDirectory
from ._speed import speed_figures
from ._step import StepMetrics


class StageLog:
    """The record of one stage, rewound to the checkpoint it continues from.

    `metrics.jsonl` gets a row per step (loss, accuracy, learning rate, gradient norm, inverse temperature) and one per
    evaluation. The last row of each block also holds samples/s, the share of time spent waiting for data, the pictures
    skipped in the run and, where known, model FLOP utilisation and memory; that of the first block of a start also
    `compile_s`, the seconds that tracing and compiling the step took, which do not count in samples/s. `skipped.jsonl`
    names each skipped picture.
    Rows stay on the devices until `flush`, so that no step waits for the one before to be read.

    Only the process that writes (`write`) touches files and console.
    """

    def __init__(
        self, config: RunConfig, place: int, paths: RunDirectory, *, start: int, write: bool, console: bool
    ) -> None:
        """
        Args:
            config: the run.
            place: index of the stage.
            paths: the run's directory.
            start: step from which the stage continues, 0 at its beginning.
            write: whether this process writes.
            console: whether to show the live line.
        """
        self._config, self._stage = config, config.stages[place]
        stage = self._stage
        self._write, self._root = write, paths.root
        self._steps_before = sum(earlier.steps for earlier in config.stages[:place])
        self._metrics, self._faults = Records(paths.metrics), Records(paths.skipped)
        if write:
            done = [earlier.name for earlier in config.stages[:place]]
            self._metrics.rewind(done, stage.name, start)
            self._faults.rewind(done, stage.name, start)
        self._skipped = len(self._faults.read())
        self._live = LiveLine(stage.name, stage.steps, start=start, enabled=console and write)
        self._events = (
            SummaryWriter(str(paths.tensorboard), purge_step=self._steps_before + start + 1) if write else None
        )
        self._pending: list[tuple[int, StepMetrics]] = []
        self._compile_s: float | None = None
        self._waited_s = 0.0
        self._since = time.perf_counter()

    def __enter__(self) -> "StageLog":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._live.__exit__, kind, error, trace)
            if self._events is not None:
                stack.callback(self._events.close)

    def compiled(self, seconds: float) -> None:
        """Note how long the step took to compile; call before the first step, whose block begins now."""
        self._compile_s = seconds
        self._live.note(f"{self._stage.name}  step compiled in {seconds:.1f} s")
        self._live.restart()
        self._since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Add to the time spent waiting for data."""
        self._waited_s += seconds

    def add(self, step: int, metrics: StepMetrics, *, faults: Sequence[Fault]) -> None:
        """Take one step: its metrics, still on the devices, and the pictures that were skipped for it."""
        self._pending.append((step, metrics))
        self._skipped += len(faults)
        if faults and self._write:
            self._faults.append(
                {"stage": self._stage.name, "step": step, "key": fault.key, "reason": fault.reason} for fault in faults
            )

    def flush(self) -> None:
        """Read what is pending, check it, write it.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if not self._pending:
            return
        values = jax.device_get([metrics for _, metrics in self._pending])
        rows: list[dict[str, Any]] = []
        for (step, _), metrics in zip(self._pending, values, strict=True):
            named = {name: float(value) for name, value in metrics.items()}
            rows.append({"stage": self._stage.name, "step": step, "samples": step * self._stage.batch_size} | named)
        self._check_finite(rows)
        elapsed_s = time.perf_counter() - self._since
        samples_per_s = len(rows) * self._stage.batch_size / elapsed_s
        rows[-1] |= {
            "samples_per_s": samples_per_s,
            "data_wait": min(self._waited_s / elapsed_s, 1.0),
            "skipped": self._skipped,
            **speed_figures(self._config, self._stage, samples_per_s),
        }
        if self._compile_s is not None:
            rows[-1]["compile_s"], self._compile_s = self._compile_s, None
        self._emit(rows)
        self._live.report(rows[-1])
        self._pending.clear()
        self._waited_s, self._since = 0.0, time.perf_counter()

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Write the results of an evaluation; the time it took does not count against training speed."""
        self._emit([{"stage": self._stage.name, "step": step} | dict(results)])
        self._live.note(f"{self._stage.name} {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in results.items()))
        self._since = time.perf_counter()

    def _check_finite(self, rows: list[dict[str, Any]]) -> None:
        bad = [row for row in rows if not math.isfinite(row["loss"])]
        if bad:
            raise FloatingPointError(
                f"Stage {self._stage.name!r}: the loss is {bad[0]['loss']} at step {bad[0]['step']} (learning rate "
                f"{bad[0]['learning_rate']:.2e}). Lower optim.learning_rate, lengthen optim.warmup_steps or set "
                f"optim.clip_norm; the checkpoints before it are intact. {self._way_on()}"
            )

    def _way_on(self) -> str:
        """The command that trains on at half the rate, from the newest checkpoint where there is one."""
        name, root = self._stage.name, self._root
        saved = newest_checkpoint(root)
        start = f" --init-from {shlex.quote(str(saved))} --from-stage {name}" if saved else ""
        rates = f"stages.{name}.optim.learning_rate={self._stage.optim.learning_rate / 2:g}"
        return (
            "To go on at half the rate in a new run: "
            f"clipa train --config {shlex.quote(str(root / 'config.json'))}{start} "
            f"--run-dir {shlex.quote(f'{root}-again')} --set {rates}"
        )

    def _emit(self, rows: list[dict[str, Any]]) -> None:
        if self._events is None:
            return
        self._metrics.append(rows)
        for name, value in rows[-1].items():
            if name not in ("stage", "step"):
                self._events.add_scalar(name, value, self._steps_before + rows[-1]["step"])


def evaluated(paths: RunDirectory, stage: StageConfig, step: int) -> bool:
    """Whether an evaluation after this step is on record, or the run has gone on to a later stage."""
    rows = Records(paths.metrics).read()
    gone_on = bool(rows) and rows[-1]["stage"] != stage.name
    return gone_on or any("loss" not in row for row in rows if (row["stage"], row["step"]) == (stage.name, step))


def last_evaluation(paths: RunDirectory, stage: StageConfig) -> dict[str, float]:
    """The newest evaluation of a stage on record, without its stage and step; empty if there is none."""
    rows = [row for row in Records(paths.metrics).read() if row["stage"] == stage.name and "loss" not in row]
    return {name: value for name, value in rows[-1].items() if name not in ("stage", "step")} if rows else {}
