"""Flags that join several processes into one run."""

import os
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from .._checks import check_at_least
from ..termination import shielded
from ._launchers import check_slurm_step, find_launch


_GRACE_S = 60


@dataclass(frozen=True)
class Processes:
    """Which process of a run this is. Start the same command once per process."""

    coordinator: str = ""
    """host:port of process 0; auto: as srun, mpirun, torchrun, Cloud TPU or Kubernetes tell; none: this process trains
    by itself, though a launcher started several. Empty: one process."""
    count: int = 0
    """Processes in all; not needed with auto, nor where a launcher tells."""
    index: int = -1
    """Place of this process, from 0; not needed with auto, nor where a launcher tells."""
    timeout_s: int = 300
    """How long to wait for the other processes to start."""

    def __post_init__(self) -> None:
        check_at_least("timeout_s", self.timeout_s, 1)
        given = bool(self.count) or self.index >= 0
        if self._explicit and (given or find_launch() is None) and not 0 <= self.index < self.count:
            raise ValueError(
                f"--processes.coordinator {self.coordinator} needs --processes.count and a --processes.index "
                f"below it, got count={self.count}, index={self.index}."
            )
        if self._explicit and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"--processes.coordinator takes HOST:PORT, auto or none, got {self.coordinator!r}.")
        if not self._explicit and given:
            raise ValueError("--processes.count and --processes.index need --processes.coordinator HOST:PORT.")

    @property
    def _explicit(self) -> bool:
        return self.coordinator not in ("", "auto", "none")

    def join(self) -> None:
        """Connect to the other processes; call before the first device is touched.

        A process that stays alone ends with exit code 1 and says so.

        Raises:
            ValueError: a launcher started several processes and nothing says whether they train together; no launcher
                or cluster tells who the processes are; or they cannot connect.
        """
        # A process that went before the others know of it would leave them waiting.
        with shielded():
            known = self._known()
            if known is not None:
                self._join(known)

    def _join(self, known: dict[str, Any]) -> None:
        import jax

        # JAX aborts a process that waited in vain, with a stack trace instead of a message; this comes before it.
        alone = threading.Timer(self.timeout_s, self._give_up, [known])
        alone.daemon = True
        alone.start()
        # It would take SIGTERM for itself, and answer at a training step only.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="[\\s\\S]*Kubernetes environment detected")
                jax.distributed.initialize(**known, initialization_timeout=self.timeout_s + _GRACE_S)
        except Exception as error:  # of the many that the clusters' own clients know
            raise ValueError(self._why_not(error)) from error
        finally:
            alone.cancel()

    def _known(self) -> dict[str, Any] | None:
        """What JAX need not ask for; None where there is nobody to join."""
        if self.coordinator == "none":
            return None
        launch = find_launch()
        if not self.coordinator:
            if launch is not None and launch.count > 1:
                raise ValueError(
                    f"{launch.launcher} started {launch.count} processes, of which this is number {launch.index}: add "
                    "--processes.coordinator auto to train one run together, or --processes.coordinator none to train "
                    "apart, each into a run directory of its own."
                )
            return None
        if self.coordinator == "auto":
            if launch is None or launch.launcher == "srun":
                check_slurm_step()
            known: dict[str, Any] = {"coordinator_address": launch.address} if launch and launch.address else {}
        else:
            known = {"coordinator_address": self.coordinator, "num_processes": self.count, "process_id": self.index}
        if launch is not None and not self.count:
            known |= {"num_processes": launch.count, "process_id": launch.index}
            if (devices := launch.local_devices(os.environ)) is not None:
                known["local_device_ids"] = devices
        return known

    def _why_not(self, error: Exception) -> str:
        # Kubernetes' message goes on with a manifest, between fences.
        said = " ".join(str(error).partition("```")[0].split())
        if self.coordinator != "auto":
            return f"--processes.coordinator {self.coordinator}: no connection ({said})."
        needs = "give HOST:PORT, --processes.count and --processes.index"
        launch = find_launch()
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            needs = (
                "in Kubernetes it takes the package of the extra jax[k8s], an Indexed Job with a subdomain, and a "
                f"service account that may read pods and jobs, as experiments/train_jobset.yaml has them; or {needs}"
            )
        elif launch is not None and launch.launcher != "srun" and not launch.address:
            needs = (
                f"{launch.launcher} tells how many processes there are, but not where the first one is: give "
                "--processes.coordinator HOST:PORT"
            )
        else:
            needs = f"start the processes with srun, mpirun or torchrun, or {needs}"
        return f"--processes.coordinator auto finds no cluster that JAX knows ({said}); {needs}."

    def _give_up(self, known: dict[str, Any]) -> None:
        count, index = known.get("num_processes"), known.get("process_id")
        place = f"process {index} of {count}" if count else "this process"
        where = known.get("coordinator_address", self.coordinator)
        sys.stderr.write(
            f"clipa: {place} waited {self.timeout_s} s for the others at {where} and stayed alone; start "
            "the same command once per process, with the address of process 0 that all of them reach, or raise "
            "--processes.timeout-s\n"
        )
        sys.stderr.flush()
        os._exit(1)
