"""What the parts share: how a part speaks with `run.py`, and how steps are timed."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


Options = dict[str, Any]
Facts = dict[str, Any]
Measure = Callable[[], Facts]


def take_part(prepare: Callable[[Options], tuple[Facts, Measure]]) -> None:
    """Compile, say so, wait for the turn, measure, say so; then end, and give the memory back.

    Parts compile next to each other and measure one by one: who is not at turn sleeps.

    Args:
        prepare: takes the options of the part; returns what is known once it is compiled, and the measurement.
    """
    # Libraries that print would disturb the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    began = time.perf_counter()
    facts, measure = prepare(json.loads(sys.argv[1]))
    print(json.dumps(facts | {"prepare_s": round(time.perf_counter() - began, 1)}), file=answers, flush=True)
    if not sys.stdin.readline():
        return
    print(json.dumps(measure()), file=answers, flush=True)
    # What holds the device's memory lives until run.py has read the card's state.
    sys.stdin.readline()
    # Some libraries' threads do not end by themselves.
    answers.flush()
    os._exit(0)


def step_times(step: Callable[[], Any], wait: Callable[[Any], Any], *, warm: int = 2, steps: int = 10) -> Facts:
    """Milliseconds of a step: each waited for, and, as training runs them, one queued behind the other.

    Args:
        step: takes one step and returns something to wait for.
        wait: returns once the device is done.
        warm: steps before.
        steps: steps of each kind.
    """
    for _ in range(warm):
        wait(step())
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        wait(step())
        times.append(1e3 * (time.perf_counter() - began))
    began, last = time.perf_counter(), None
    for _ in range(steps):
        last = step()
    wait(last)
    queued = 1e3 * (time.perf_counter() - began) / steps
    named = {"ms": statistics.median(times), "ms_least": min(times), "ms_most": max(times), "ms_queued": queued}
    return {name: round(value, 3) for name, value in named.items()} | {"steps": steps}


def jax_memory() -> Facts:
    """The most that JAX held on its device since the process began, in GiB; nothing where that is not counted."""
    import jax

    found = jax.local_devices()[0].memory_stats()
    return {"device_peak_gib": round(found["peak_bytes_in_use"] / 2**30, 2)} if found else {}


def compiled_memory(compiled: Any) -> Facts:
    """What the compiler says of a program's memory, in GiB."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {}
    beside = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    named = {
        "plan_gib": analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + beside,
        "plan_temporary_gib": analysis.temp_size_in_bytes,
        "plan_peak_gib": getattr(analysis, "peak_memory_in_bytes", 0),
    }
    return {name: round(value / 2**30, 2) for name, value in named.items()}


def keep_program(compiled: Any, name: str) -> None:
    """Write the compiled program where run.py collects them, for an estimate of the very program that was timed."""
    import gzip
    from pathlib import Path

    folder = os.environ.get("PROGRAMS")
    if folder:
        with gzip.open(Path(folder) / f"{name}.hlo.gz", "wt") as file:
            file.write(compiled.as_text())
