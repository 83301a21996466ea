"""Flags that join several processes into one run."""

import os
import sys
import threading
from dataclasses import dataclass

from .._checks import check_at_least
from ..termination import shielded


_GRACE_S = 60


@dataclass(frozen=True)
class Processes:
    """Which process of a run this is. Start the same command once per process."""

    coordinator: str = ""
    """host:port of process 0; auto: as SLURM, Cloud TPU or another cluster that JAX knows tells. Empty: one process."""
    count: int = 0
    """Processes in all; not needed with auto."""
    index: int = -1
    """Place of this process, from 0; not needed with auto."""
    timeout_s: int = 300
    """How long to wait for the other processes to start."""

    def __post_init__(self) -> None:
        check_at_least("timeout_s", self.timeout_s, 1)
        explicit = self.coordinator not in ("", "auto")
        if explicit and not 0 <= self.index < self.count:
            raise ValueError(
                f"--processes.coordinator {self.coordinator} needs --processes.count and a --processes.index "
                f"below it, got count={self.count}, index={self.index}."
            )
        if not explicit and (self.count or self.index >= 0):
            raise ValueError("--processes.count and --processes.index need --processes.coordinator HOST:PORT.")

    def join(self) -> None:
        """Connect to the other processes; call before the first device is touched.

        A process that stays alone ends with exit code 1 and says so.

        Raises:
            ValueError: no cluster tells who the processes are.
        """
        if not self.coordinator:
            return
        import jax

        explicit = {"coordinator_address": self.coordinator, "num_processes": self.count, "process_id": self.index}
        known = {} if self.coordinator == "auto" else explicit
        # JAX aborts a process that waited in vain, with a stack trace instead of a message; this comes before it.
        alone = threading.Timer(self.timeout_s, self._give_up)
        alone.daemon = True
        alone.start()
        # It would take SIGTERM for itself and answer at a training step only, if one more comes.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            # A process that goes before the others know of it would leave them waiting.
            with shielded():
                jax.distributed.initialize(**known, initialization_timeout=self.timeout_s + _GRACE_S)
        except ValueError as error:
            raise ValueError(
                f"--processes.coordinator auto finds no cluster that JAX knows ({error}); give HOST:PORT, "
                "--processes.count and --processes.index."
            ) from error
        finally:
            alone.cancel()

    def _give_up(self) -> None:
        place = f"process {self.index} of {self.count}" if self.count else "this process"
        sys.stderr.write(
            f"clipa: {place} waited {self.timeout_s} s for the others at {self.coordinator} and stayed alone; start "
            "the same command once per process, with the address of process 0 that all of them reach, or raise "
            "--processes.timeout-s\n"
        )
        sys.stderr.flush()
        os._exit(1)
