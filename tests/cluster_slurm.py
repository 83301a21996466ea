"""The launch script as shipped, on a SLURM cluster of two nodes that is started on this machine, and Open MPI.

`make test-cluster` runs it. What it needs comes from Debian's packages slurm-wlm, munge and openmpi-bin.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary, xla_flags
from signal_runs import newest_step, start

from clipa_eqx.config import CheckpointConfig, EvalConfig
from clipa_eqx.models import load_weights


ROOT = Path(__file__).parent.parent
HOST = socket.gethostname().split(".")[0]
SLURM_CONF = """\
ClusterName=clipa
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _environment():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    scripts = Path(sys.executable).parent
    return environment | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{scripts}:{environment['PATH']}:/usr/sbin",
    }


def _ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM cluster; gives the environment in which its commands find it."""
    root = tmp_path_factory.mktemp("slurm")
    # Processes find the first one by the name of its node, which must be known here.
    nodes = ("127.0.0.1", "127.0.0.2")
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (root / name).mkdir()
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    conf = root / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=HOST, root=root, ports=_ports(3), user="root"))
    environment = _environment() | {"SLURM_CONF": str(conf)}
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munged = ["munged", "--force", *(f"--{name}={root / file}" for name, file in files.items())]
    munged.append(f"--seed-file={root / 'munge.seed'}")
    daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in nodes)]
    started = []
    try:
        started.append(
            subprocess.Popen([*munged, "--foreground"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        _until(lambda: (root / "munge.socket").exists(), 20)
        for daemon in daemons:
            command = [*daemon, "-f", str(conf)]
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        _until(lambda: _call(environment, "sinfo", "-h", "-o", "%D %T").strip() == "2 idle", 60)
        yield environment
    finally:
        # Tasks outlive the daemons that started them.
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            _call(environment, "scancel", "--full", "--signal=KILL", "--user=root")
            _call(environment, "scancel", "--user=root")
            _until(lambda: not _call(environment, "squeue", "-h").strip(), 60)
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _call(environment, *command):
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def _until(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_shards(directory / "retrieval", pairs=8, shards=1)
    write_vocabulary(directory / "vocab.txt")
    evaluation = EvalConfig(retrieval=str(directory / "retrieval"))
    write_config(directory / "run.json", tiny_run(directory, evaluation=evaluation, checkpoint=CheckpointConfig(50)))
    run = start(["train", "--config", directory / "run.json", "--run-dir", directory / "plain"])
    assert run.end()[0] == [0], run.said
    return directory


def _check(data, name):
    got, wanted = (jax.tree.leaves(load_weights(data / run / "model.safetensors")) for run in (name, "plain"))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _submit(cluster, data, name):
    """The script as shipped, told what differs on a cluster without GPUs; returns the job's number and its output."""
    output = data / f"{name}.out"
    options = ["--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={output}"]
    arguments = ["--config", data / "run.json", "--run-dir", data / name]
    said = _call(cluster, "sbatch", *options, ROOT / "experiments" / "train_slurm.sh", *arguments)
    found = re.fullmatch(r"Submitted batch job (\d+)\s*", said)
    assert found, said
    return found[1], output


def _state(cluster, job):
    found = re.search(r"JobState=(\w+) .*Restarts=(\d+)", _call(cluster, "scontrol", "--oneliner", "show", "job", job))
    return found and (found[1], int(found[2]))


def _wait_for_step(cluster, job, output, restarts):
    """Until the processes of the job's so manieth start have begun."""

    def begun():
        state = _state(cluster, job)
        return state == ("RUNNING", restarts) and f"{job}.0" in _call(cluster, "squeue", "-h", "-s", "-j", job)

    _until(begun, 90)


def test_a_job_is_queued_again_until_its_two_stages_are_done(cluster, data):
    job, output = _submit(cluster, data, "requeued")
    # Amid training; the other way in which SLURM is often told to ask.
    _until(lambda: (data / "requeued" / "metrics.jsonl").exists(), 90)
    _call(cluster, "scancel", "--signal=USR1", job)
    # Before the first step of the resumed run: while Python starts.
    _wait_for_step(cluster, job, output, 1)
    step = newest_step(data / "requeued")
    time.sleep(2)
    _call(cluster, "scancel", "--signal=TERM", job)
    _wait_for_step(cluster, job, output, 2)
    assert newest_step(data / "requeued") == step
    _until(lambda: _state(cluster, job) == ("COMPLETED", 2), 120)
    _check(data, "requeued")
    assert "Traceback" not in output.read_text()


def test_a_job_that_its_user_cancels_saves_and_stays_away(cluster, data):
    job, output = _submit(cluster, data, "cancelled")
    _until(lambda: (data / "cancelled" / "metrics.jsonl").exists(), 90)
    _call(cluster, "scancel", job)
    _until(lambda: (_state(cluster, job) or ("",))[0] == "CANCELLED", 60)
    time.sleep(5)
    assert _state(cluster, job) == ("CANCELLED", 0)
    assert newest_step(data / "cancelled") is not None, output.read_text()


def test_inside_an_allocation_without_srun_it_says_so(cluster, data):
    arguments = ["--config", data / "run.json", "--run-dir", data / "nothing"]
    allocation = ["salloc", "-Q", "-N2", "--ntasks-per-node=1"]
    said = _call(cluster, *allocation, "clipa", "train", *arguments, "--processes.coordinator", "auto")
    assert "is to have 2 tasks, but this process is not in a step; start it with srun" in said
    said = _call(cluster, *allocation, "srun", "clipa", "train", *arguments)
    assert "srun started 2 processes" in said
    assert "--processes.coordinator auto" in said


def test_open_mpi_starts_a_run_to_its_end(cluster, data):
    """In an allocation, where the variables of SLURM's own step lie about too."""
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    arguments = ["--config", data / "run.json", "--run-dir", data / "mpi", "--processes.coordinator", "auto"]
    said = _call(cluster, "salloc", "-Q", "-N2", "--ntasks-per-node=1", *mpirun, "clipa", "train", *arguments)
    assert (data / "mpi" / "model.safetensors").exists(), said
    _check(data, "mpi")


def test_scripts_say_how_they_are_used():
    scripts = sorted((ROOT / "experiments").glob("*.sh"))
    if shutil.which("shellcheck"):
        assert _call(os.environ, "shellcheck", *scripts) == ""
    environment = {"PATH": "/usr/bin:/bin"}
    assert "usage: TPU=NAME_OF_SLICE" in _call(environment, "bash", ROOT / "experiments" / "train_tpu_pod.sh")
    assert "train_slurm.sh: " in _call(environment, "bash", ROOT / "experiments" / "train_slurm.sh")
