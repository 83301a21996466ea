"""The live line of a run."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class LiveLine:
    """Progress of one stage: a bar on a terminal, a plain line per report elsewhere."""

    def __init__(self, stage: str, steps: int, *, start: int, enabled: bool) -> None:
        self._console = Console(stderr=True, quiet=not enabled)
        self._stage, self._steps, self._first = stage, steps, start
        self._began = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[report]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task(stage, total=steps, completed=start, report="")

    def __enter__(self) -> "LiveLine":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def restart(self) -> None:
        """Count the time that is left from here, as after compiling."""
        self._began = time.perf_counter()

    def report(self, row: dict[str, Any]) -> None:
        """Show a log row: loss, learning rate, samples/s, share of time waiting for data, use of the devices."""
        step = row["step"]
        text = (
            f"loss {row['loss']:.3f}  lr {row['learning_rate']:.2e}  "
            f"{row['samples_per_s']:.0f} samples/s  waiting {100 * row['data_wait']:.0f}%"
        )
        if "mfu" in row:
            text += f"  MFU {100 * row['mfu']:.0f}%"
        if "memory_gb" in row:
            text += f"  memory {row['memory_gb']:.1f} GB"
        if row["skipped"]:
            text += f"  skipped {row['skipped']}"
        self._progress.update(self._task, completed=step, report=text)
        if self._progress.disable:
            left = (time.perf_counter() - self._began) / max(step - self._first, 1) * (self._steps - step)
            self.note(f"{self._stage} {step}/{self._steps}  {text}  ETA {left:.0f}s")

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
