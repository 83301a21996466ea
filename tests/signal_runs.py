"""Runs that are stopped by signals at given moments, and started again."""

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers import xla_flags


_WORKER = Path(__file__).parent / "signal_worker.py"
_ROOT = _WORKER.parent.parent


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@dataclass
class Started:
    """The processes of one start of a run, and what they have said on stderr."""

    processes: list
    said: list = field(default_factory=list)

    def wait_for(self, pattern, indices, timeout_s=120):
        """Wait until each of the named processes has said something."""
        deadline = time.monotonic() + timeout_s
        while not all(re.search(pattern, self.said[index]) for index in indices):
            self._read(deadline)

    def _read(self, deadline):
        with selectors.DefaultSelector() as selector:
            for index, process in enumerate(self.processes):
                if process.stderr is not None and not process.stderr.closed:
                    selector.register(process.stderr, selectors.EVENT_READ, index)
            if not selector.get_map():
                raise AssertionError(f"ended before that: {self.said}")
            found = selector.select(max(0.0, deadline - time.monotonic()))
            if not found:
                raise TimeoutError(f"{self.said}")
            for key, _ in found:
                data = os.read(key.fd, 1 << 16)
                self.said[key.data] += data.decode(errors="replace")
                if not data:
                    self.processes[key.data].stderr.close()

    def end(self, timeout_s=120):
        """Wait for all; returns exit codes and seconds that it took."""
        began = time.monotonic()
        try:
            while any(not process.stderr.closed for process in self.processes):
                self._read(began + timeout_s)
            codes = [process.wait(timeout_s) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, time.monotonic() - began


def start(arguments, *, processes=1, moment="never", nth=1, cache=None, devices=1, folders=None, own=None):
    """Start a run of `clipa` in so many processes; each stands still at the moment.

    `moment`: one for all, or a list with one for each. `folders`: where each is started.
    `own`: further arguments of each.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(_ROOT)}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    moments = [moment] * processes if isinstance(moment, str) else moment
    join = ["--processes.coordinator", free_address(), "--processes.count", processes, "--processes.index"]
    started = []
    for index in range(processes):
        place = [*join, index] if processes > 1 else []
        more = [] if own is None else own[index]
        command = [sys.executable, _WORKER, moments[index], nth, *arguments, *more, *place]
        started.append(
            subprocess.Popen(
                [str(part) for part in command],
                cwd=_ROOT if folders is None else folders[index],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    return Started(started, [""] * processes)


def stopped(arguments, moment, *, nth=1, processes=1, to=None, times=1, **how):
    """Start a run, send SIGTERM at the moment to the processes `to` (None: all), see it end.

    Returns:
        Exit codes, seconds from the signal to the end, and what was said.
    """
    run = start(arguments, processes=processes, moment=moment, nth=nth, **how)
    moments = [moment] * processes if isinstance(moment, str) else moment
    standing = [index for index, own in enumerate(moments) if own != "never"]
    run.wait_for(r"AT \w+", standing)
    began = time.monotonic()
    for again in range(times):
        time.sleep(0.2 * again)
        for index in range(processes) if to is None else to:
            run.processes[index].send_signal(signal.SIGTERM)
    codes, _ = run.end()
    return codes, time.monotonic() - began, run.said


def newest_step(run_dir):
    """Stage and step of the newest checkpoint, or None."""
    found = [path for path in (run_dir / "checkpoints").glob("*/*") if path.name.isdecimal()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else (newest.parent.name, int(newest.name))
