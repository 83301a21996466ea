"""What a launcher of several processes tells them by its environment variables."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


_GPUS_OF_DRIVER = Path("/proc/driver/nvidia/gpus")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that one launcher started."""

    launcher: str
    count: int
    """Processes in all."""
    index: int
    local_index: int
    """Place among those on this machine."""
    local_count: int
    address: str = ""
    """host:port of process 0; empty: JAX asks the launcher."""

    def local_devices(self, environment: Mapping[str, str]) -> list[int] | None:
        """Which of the GPUs that this process sees are its own; None: no GPU is told of, JAX decides.

        JAX takes for itself the one whose number is `local_index`: with `--gpus-per-task` there is no such number, and
        with fewer tasks than GPUs the others would idle.

        Raises:
            ValueError: the GPUs do not split over the processes of this machine.
        """
        visible = _visible_gpus(environment)
        if not visible:
            return None
        bound = {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"} & set(environment)
        of_step = environment.get("SLURM_STEP_GPUS", "")
        if bound or visible < self.local_count or (of_step and visible < len(of_step.split(","))):
            return list(range(visible))
        if visible % self.local_count:
            raise ValueError(
                f"{self.launcher} started {self.local_count} processes on this machine, over which its {visible} GPUs "
                "do not split; start one per GPU, or a number that divides them."
            )
        share = visible // self.local_count
        return list(range(self.local_index * share, (self.local_index + 1) * share))


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launcher that started this process, the innermost where one starts another; None: none, or one that only JAX
    asks (Cloud TPU, Kubernetes)."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return _torchrun(environment)
    for rules in (_open_mpi, _pmi, _slurm, _torchrun):
        if (found := rules(environment)) is not None:
            return found
    return None


def check_slurm_step(environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that a process inside a SLURM job is one of a step's tasks, all of which are started.

    A batch script, an interactive allocation or a notebook in it have the job's variables, its number of tasks among
    them, but are no task: JAX would wait for others that nobody starts.

    Raises:
        ValueError: it is not.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    tasks = int(environment.get("SLURM_NTASKS", 1))
    started = int(environment.get("SLURM_STEP_NUM_TASKS", 0))
    if "SLURM_STEP_NODELIST" in environment and started >= tasks:
        return
    here = f"in a step of {started} task{'s' * (started > 1)}" if started else "not in a step"
    raise ValueError(
        f"--processes.coordinator auto: SLURM job {environment['SLURM_JOB_ID']} is to have {tasks} "
        f"task{'s' * (tasks > 1)}, but this process is {here}; start it with srun, as `srun clipa train ...`, or leave "
        "--processes out to train in this process alone."
    )


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"} <= set(environment):
        return None
    count, local_index = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_LOCALID", 0))
    # As "8(x2),4": tasks on each node of the step.
    node = int(environment.get("SLURM_NODEID", 0))
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(tasks) for tasks, nodes in groups for _ in range(int(nodes or 1))]
    local_count = tasks[node] if node < len(tasks) else local_index + 1
    return Launch("srun", count, int(environment["SLURM_PROCID"]), local_index, local_count)


def _open_mpi(environment: Mapping[str, str]) -> Launch | None:
    return _by_names(environment, "mpirun", "OMPI_COMM_WORLD_{}", "SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")


def _pmi(environment: Mapping[str, str]) -> Launch | None:
    # srun --mpi=pmi2 sets these too, and tells more by variables of its own.
    if "SLURM_STEP_NODELIST" in environment:
        return None
    return _by_names(environment, "mpiexec", "{}", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _torchrun(environment: Mapping[str, str]) -> Launch | None:
    found = _by_names(environment, "torchrun", "{}", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if found is None or not host or not port:
        return found
    # torchrun's own store listens at that port, unless others than it have set the variables.
    taken = "TORCHELASTIC_RUN_ID" in environment
    address = f"{host}:{int(port) + taken}"
    return Launch(found.launcher, found.count, found.index, found.local_index, found.local_count, address)


def _by_names(
    environment: Mapping[str, str], launcher: str, form: str, size: str, rank: str, local_rank: str, local_size: str
) -> Launch | None:
    values = [environment.get(form.format(name)) for name in (size, rank, local_rank, local_size)]
    if values[0] is None or values[1] is None:
        return None
    local_index = int(values[2] or 0)
    return Launch(launcher, int(values[0]), int(values[1]), local_index, int(values[3] or local_index + 1))


def _visible_gpus(environment: Mapping[str, str]) -> int:
    for name in _VISIBLE:
        if name in environment:
            return len([one for one in environment[name].split(",") if one.strip() not in ("", "-1", "NoDevFiles")])
    return len(list(_GPUS_OF_DRIVER.iterdir())) if _GPUS_OF_DRIVER.is_dir() else 0
