"""How a process learns from its launcher which one of a run it is, and what it says where it cannot."""

import os
import socket
import sys
import types
from pathlib import Path

import jax
import pytest
import yaml
from jax._src import clusters, distributed

from clipa_eqx.cli._launchers import find_launch
from clipa_eqx.cli._processes import Processes


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = JOB | {
    "SLURM_STEP_NODELIST": "n[0-1]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1743192064.0;tcp://192.0.2.2:38351"}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TORCHRUN = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host0",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher, and shows what JAX would be told."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "KUBERNETES_", "CUDA_VISIBLE", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **known: told.update(known))

    def launch(environment, **fields):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Processes(**fields).join()
        return {name: value for name, value in told.items() if name != "initialization_timeout"}

    yield launch
    jax.config.update("jax_enable_preemption_service", True)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        (STEP, "srun"),
        (ORTE | OPEN_MPI_5, "mpirun"),
        (TORCHRUN, "torchrun"),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, "mpiexec"),
    ],
    ids=["srun", "mpirun", "torchrun", "mpiexec"],
)
def test_several_tasks_without_a_word_on_how_they_belong_together_are_refused(environment, launcher, launched):
    with pytest.raises(ValueError, match=f"{launcher} started 4 processes, of which this is number 3") as refused:
        launched(environment)
    assert "--processes.coordinator auto" in str(refused.value)
    assert "--processes.coordinator none" in str(refused.value)
    assert launched({}, coordinator="none") == {}


@pytest.mark.parametrize("environment", [STEP | {"SLURM_STEP_NUM_TASKS": "1"}, TORCHRUN | {"WORLD_SIZE": "1"}, JOB, {}])
def test_one_task_trains_by_itself(environment, launched):
    assert launched(environment) == {}


@pytest.mark.parametrize(
    ("environment", "here"),
    [
        (JOB, "not in a step"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, "in a step of 1 task"),
        ({"SLURM_JOB_ID": "7"}, "not in a step"),
    ],
    ids=["batch-script", "interactive-step", "notebook"],
)
def test_inside_slurm_without_srun_it_says_so_at_once(environment, here, launched):
    with pytest.raises(ValueError, match=f"{here}; start it with srun"):
        launched(environment, coordinator="auto")


@pytest.mark.parametrize(
    ("environment", "address", "devices"),
    [
        (STEP, None, None),
        # Two of the node's four GPUs each, not the one whose number is that of the task.
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None, [2, 3]),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_PER_TASK": "1"}, None, [0]),
        (STEP | {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_STEP_GPUS": "0,1,2,3"}, None, [0, 1]),
        (ORTE | OPEN_MPI_5 | {"CUDA_VISIBLE_DEVICES": "0,1"}, None, [1]),
        # mpirun inside an allocation starts its own daemons by srun, whose variables stay.
        (STEP | {"SLURM_PROCID": "0"} | ORTE | OPEN_MPI_5, None, None),
        (TORCHRUN, "host0:29500", None),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "none", "CUDA_VISIBLE_DEVICES": "0,1"}, "host0:29501", [1]),
        (STEP | {"SLURM_PROCID": "1"} | TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}, "host0:29501", None),
    ],
)
def test_auto_tells_jax_what_the_launcher_tells(environment, address, devices, launched):
    told = launched(environment, coordinator="auto")
    assert (told["num_processes"], told["process_id"]) == (4, 3)
    assert told.get("coordinator_address") == address
    assert told.get("local_device_ids") == devices


def test_an_address_suffices_where_the_launcher_counts(launched):
    told = launched(OPEN_MPI_5, coordinator="host0:1234")
    assert told == {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 3}


def test_gpus_that_do_not_split_are_named():
    launch = find_launch(STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    with pytest.raises(ValueError, match="2 processes on this machine, over which its 3 GPUs do not split"):
        launch.local_devices({"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"coordinator": "host0"}, ["needs --processes.count"]),
        ({"coordinator": "host0", "count": 2, "index": 0}, ["HOST:PORT"]),
        ({"coordinator": "none", "count": 2}, ["need --processes.coordinator HOST:PORT"]),
    ],
)
def test_flags_that_do_not_fit_are_refused(fields, parts, launched):
    with pytest.raises(ValueError) as refused:
        launched({}, **fields)
    for part in parts:
        assert part in str(refused.value)


@pytest.fixture
def asked(launched, monkeypatch):
    """JAX's own search for a cluster, without what it would then start."""

    def initialize(*, initialization_timeout, **known):
        distributed.State().initialize(initialization_timeout=1, **known)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return launched


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, "start the processes with srun, mpirun or torchrun"),
        (OPEN_MPI_5, "mpirun tells how many processes there are, but not where"),
    ],
    ids=["none", "open-mpi-5"],
)
def test_auto_without_a_cluster_says_what_to_give(environment, part, asked):
    with pytest.raises(ValueError, match=part) as refused:
        asked(environment, coordinator="auto")
    assert "HOST:PORT" in str(refused.value)


class _Forbidden(Exception):
    status, reason = 403, "Forbidden"


def _kubernetes(pod):
    """The part of the client that JAX uses; `pod` gives the only pod."""

    def named(**fields):
        return types.SimpleNamespace(**fields)

    job = named(metadata=named(name="train", labels={}, owner_references=[]), spec=named(parallelism=2), kind="Job")
    core = named(
        list_namespaced_pod=lambda **_: named(items=[pod()]), list_namespaced_service=lambda *_: named(items=[])
    )
    module = types.ModuleType("kubernetes")
    module.config = named(load_incluster_config=lambda: None)
    module.client = named(
        CoreV1Api=lambda: core,
        BatchV1Api=lambda: named(read_namespaced_job=lambda **_: job),
        exceptions=named(ApiException=_Forbidden),
    )
    return module


def _pod(subdomain):
    labels = {"job-name": "train"}
    owner = types.SimpleNamespace(controller=True, kind="Job")
    metadata = types.SimpleNamespace(labels=labels, name="train-0", owner_references=[owner])
    return types.SimpleNamespace(metadata=metadata, spec=types.SimpleNamespace(subdomain=subdomain))


def _forbidden():
    raise _Forbidden


@pytest.mark.parametrize(
    ("pod", "part"),
    [
        (_forbidden, "403"),
        (lambda: _pod(None), "Pods within a job need a headless service"),
        (lambda: _pod("jaxpods"), "completionMode"),
    ],
    ids=["403", "no-subdomain", "not-indexed"],
)
def test_what_kubernetes_lacks_is_said_in_one_line(pod, part, asked, monkeypatch):
    cluster = clusters.K8sCluster
    monkeypatch.setitem(sys.modules, "kubernetes", _kubernetes(pod))
    monkeypatch.setattr(cluster, "_namespace", classmethod(lambda cls: "default"))
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.0.1")
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "train-0"}
    with pytest.raises(ValueError, match=part) as refused:
        asked(environment, coordinator="auto")
    for name in ("_pod", "_job", "_headless_svc", "_controller"):
        vars(cluster)[name].__func__.cache_clear()
    assert "\n" not in str(refused.value)
    assert "experiments/train_jobset.yaml" in str(refused.value)


def test_kubernetes_without_its_client_names_the_extra(asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(ValueError, match=r"jax\[k8s\]"):
        asked({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, coordinator="auto")


def test_the_manifest_has_what_jax_asks_kubernetes_for():
    text = (Path(__file__).parent.parent / "experiments" / "train_jobset.yaml").read_text()
    account, role, binding, jobs = yaml.safe_load_all(text)
    (train,) = jobs["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    may_list = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert may_list == {"pods", "services", "jobs"}
    (container,) = pod["containers"]
    # The first process of a container alone gets SIGTERM.
    assert container["command"][0] == "clipa"
    assert "--processes.coordinator=auto" in container["args"]
