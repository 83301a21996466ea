"""Several processes that carry out one run: a fault of one ends all, and all must start from the same."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..sharding import texts_of_all
from ..termination import interruptible
from ._run_dir import differences


_T = TypeVar("_T")

# Fields in which the machines of a run may differ.
_OWN = ("data.threads", "data.processes", "data.prefetch", "data.stall_timeout_s")


def together(action: Callable[[], _T]) -> _T:
    """Do something on every process, and fail on every process if it fails on one.

    A process that failed alone would leave the others waiting for it in their next common operation.

    Args:
        action: what each process does by itself, and gives up at SIGTERM; it may not communicate.

    Returns:
        What it gave on this process.

    Raises:
        ValueError: it failed on another process; on the process where it fails, its own error.
        Terminated: SIGTERM came, to this process or another.
    """
    error: Exception | None = None
    result: Any = None
    try:
        with interruptible():
            result = action()
    except (ValueError, OSError, ImportError) as caught:
        error = caught
    faults = texts_of_all(f"{type(error).__name__}: {error}" if error else "")
    if error is not None:
        raise error
    failed = [f"process {index}: {fault}" for index, fault in enumerate(faults) if fault]
    if failed:
        raise ValueError("Another process of this run cannot start:\n" + "\n".join(failed))
    return result


def check_same(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes start from the same config and data.

    Args:
        facts: JSON values by name. What is named in `_OWN` may differ.

    Raises:
        ValueError: on every process, with what differs and on which one.
    """
    first, *others = (json.loads(text) for text in texts_of_all(json.dumps(facts)))
    changes = [
        f"{change} (process 0 there, process {index} here)"
        for index, other in enumerate(others, start=1)
        for change in differences(first, other)
        if not change.startswith(_OWN)
    ]
    if changes:
        raise ValueError(
            "The processes of this run do not start from the same; give all of them the same command and the same "
            "files:\n" + "\n".join(f"  - {change}" for change in changes)
        )
