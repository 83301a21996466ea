"""Several processes that carry out one run: a fault of one ends all, and all must start from the same."""

import json
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from ..sharding import texts_of_all
from ..termination import interruptible
from ._run_dir import differences, PATHS, RunDirectory, versions


_T = TypeVar("_T")

# Fields in which the machines of a run may differ; in paths too, where the same lies under them.
_OWN = tuple(f"config.{name}" for name in ("data.threads", "data.processes", "data.prefetch", "data.stall_timeout_s"))
_PATHS = tuple(f"config.{name}" for name in PATHS)

_APPEARS_S = 10.0
"""How long a file of one host may take to appear on another; file systems keep what they know for a while."""


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


def check_versions() -> None:
    """Make sure that all processes run the same code.

    Raises:
        ValueError: on every process, with what differs and on which one.
    """
    check_same({"versions": versions()})


def check_same(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes start from the same config and data.

    Args:
        facts: JSON values by name. What is named in `_OWN` may differ, and paths if nothing else does: what lies under
            them is among the facts.

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
    if not all(change.startswith(_PATHS) for change in changes):
        raise ValueError(
            "The processes of this run do not start from the same; give all of them the same command, the same files "
            "and the same packages:\n" + "\n".join(f"  - {change}" for change in changes)
        )


def check_shared(paths: RunDirectory) -> None:
    """Make sure that all processes see one run directory; every process calls it, before anything is trained.

    Raises:
        ValueError: one does not, with its host and path.
    """
    if jax.process_count() == 1:
        return
    # A name that no file system has looked up, and knows not to be there.
    name, writer = json.loads(texts_of_all(json.dumps([f".seen-{uuid.uuid4().hex}", platform.node()]))[0])
    file = paths.root / name

    def write() -> None:
        # Also where a process knows from before that there was no such folder.
        paths.root.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            file.touch()

    def see() -> None:
        deadline = time.monotonic() + _APPEARS_S
        while not file.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{platform.node()} does not see the run directory at {paths.root.resolve()} that process 0 on "
                    f"{writer} writes; give all processes a folder that their hosts share."
                )
            time.sleep(0.1)

    together(write)
    try:
        together(see)
    finally:
        if jax.process_index() == 0:
            file.unlink(missing_ok=True)
