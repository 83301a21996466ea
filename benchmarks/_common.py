"""What the benchmarks share: rounds in which peers take turns, and one JSON line per result."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, IO, NamedTuple


RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("jax", "equinox", "optax", "flax", "torch", "open_clip_torch")


class Turn(NamedTuple):
    """Time of one step in one turn."""

    wall_s: float
    processor_s: float
    """Over all cores; what other work on the machine leaves alone."""


class Worker:
    """A contestant in a process of its own, so that the thread pools and memory of peers do not meet.

    The process runs the same script with `arguments`, ends its preparation in [`serve`][benchmarks._common.serve], and
    sleeps while others have their turn.
    """

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, Any] = self._read()

    def run(self, steps: int) -> "Turn":
        """Take so many steps; returns the time of one."""
        _stream(self._process.stdin).write(f"{steps}\n")
        _stream(self._process.stdin).flush()
        return Turn(**{name: value / steps for name, value in self._read().items()})

    def close(self) -> None:
        """End the process."""
        _stream(self._process.stdin).close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = _stream(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}.")
        return json.loads(line)


def serve(run: Callable[[int], None], facts: dict[str, Any]) -> None:
    """Answer the parent of this process: `facts` first, then the wall time of `run(steps)` for each line it sends."""
    # Libraries that print would disturb the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        run(int(line))
        turn = Turn(time.perf_counter() - wall, time.process_time() - processor)
        print(json.dumps(turn._asdict()), file=answers, flush=True)


def take_turns(workers: Sequence[Worker], *, rounds: int, turn_s: float) -> dict[str, list[Turn]]:
    """The turns of each worker; within a round all have one, so a busy machine slows all alike."""
    steps = {}
    for worker in workers:
        worker.run(1)
        steps[worker.name] = max(1, round(turn_s / worker.run(1).wall_s))
    turns: dict[str, list[Turn]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            turns[worker.name].append(worker.run(steps[worker.name]))
    return turns


def rates(turns: Sequence[Turn], per_step: int) -> dict[str, float]:
    """So many things per step as things per second: median, extremes, and processor milliseconds for each."""
    named = {
        "per_s": statistics.median(per_step / turn.wall_s for turn in turns),
        "per_s_least": min(per_step / turn.wall_s for turn in turns),
        "per_s_most": max(per_step / turn.wall_s for turn in turns),
        "processor_ms": statistics.median(1e3 * turn.processor_s / per_step for turn in turns),
    }
    return {name: float(f"{value:.4g}") for name, value in named.items()}


def times_as_fast(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, float]:
    """Their time over ours, the median over rounds: wall time, and processor time, which other work leaves alone."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "wall": round(statistics.median(b.wall_s / a.wall_s for a, b in pairs), 3),
        "processor": round(statistics.median(b.processor_s / a.processor_s for a, b in pairs), 3),
    }


def write_record(question: str, row: dict[str, Any]) -> None:
    """Append a line to `results/QUESTION.json` with the machine and the versions it was measured on."""
    import jax

    device = jax.devices()[0].device_kind
    environment = {
        "device": _processor() if device == "cpu" else device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{question}.json").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row | {"environment": environment}) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stream(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("The worker was started without pipes.")
    return stream
