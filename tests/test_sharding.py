"""Meshes and global arrays, on eight devices of one process and on four of two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.sharding import (
    batch_sharding,
    DATA_AXIS,
    make_mesh,
    replicate,
    replicated_sharding,
    to_global,
    whole_on_one_device,
)


def test_mesh_orders_devices_by_process():
    devices = jax.devices()
    mesh = make_mesh(devices[5:1:-1])
    assert mesh.axis_names == (DATA_AXIS,)
    assert list(mesh.devices) == devices[2:6]
    assert make_mesh().size == 8
    with pytest.raises(ValueError, match="one device or more"):
        make_mesh([])
    with pytest.raises(ValueError, match="each named once"):
        make_mesh([devices[0], devices[0]])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_to_global_splits_rows_in_order(num_devices):
    mesh = make_mesh(jax.devices()[:num_devices])
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "index": np.arange(16, dtype=np.int32)}
    placed = to_global(batch, mesh)
    for name, rows in batch.items():
        assert placed[name].sharding == batch_sharding(mesh)
        assert placed[name].dtype == rows.dtype
        np.testing.assert_array_equal(placed[name], rows)
        shards = sorted(placed[name].addressable_shards, key=lambda shard: shard.device.id)
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), rows)
        assert {len(shard.data) for shard in shards} == {16 // num_devices}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.zeros((12, 2))}, "12 rows does not split over the 8 devices of this process; use a multiple of 8"),
        ({"x": np.zeros(8), "y": np.zeros(16)}, r"same number of rows.*\(8,\), \(16,\)"),
        ({"x": np.zeros(())}, "at least 1"),
        ({"x": np.zeros((0, 4))}, "at least 1"),
    ],
)
def test_rows_that_do_not_split_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        to_global(batch, make_mesh())


def test_replicate_puts_the_same_on_every_device():
    mesh = make_mesh()
    key = jax.random.key(7)
    tree = {"host": np.arange(3.0), "device": jnp.ones((2, 2)), "key": key, "name": "vision", "rate": 0.5, "no": None}
    placed = replicate(tree, mesh)
    assert (placed["name"], placed["rate"], placed["no"]) == ("vision", 0.5, None)
    assert placed["key"].dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), jax.random.key_data(key))
    for name in ("host", "device"):
        assert placed[name].sharding == replicated_sharding(mesh)
        assert len(placed[name].addressable_shards) == 8
        for shard in placed[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, tree[name])


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
process, address = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(address, num_processes=2, process_id=process)
import numpy as np
from jax.sharding import PartitionSpec as P
from clipa_eqx.sharding import make_mesh, replicate, to_global

mesh = make_mesh(jax.devices()[::-1])
rows = to_global(np.arange(4, dtype=np.float32) + 10 * process, mesh)
state = replicate({"weight": np.float32([2.0]), "key": jax.random.key(3)}, mesh)
again = replicate(state, mesh)

def whole(rows, weight, key):
    order = jax.lax.all_gather(rows, "data", tiled=True)
    return jax.lax.pmean(order * weight, "data"), jax.random.key_data(key)

mapped = jax.shard_map(whole, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P())
order, key = jax.jit(mapped)(rows, again["weight"], again["key"])
print(np.asarray(order.addressable_data(0)).tolist(), np.asarray(key.addressable_data(0)).tolist())
"""


def test_two_processes_see_one_batch():
    """Real collectives: the global batch is the rows of process 0, then those of process 1, on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # The device count of this test run must not reach the two processes, which set their own.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(process), address],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    key = jax.random.key_data(jax.random.key(3)).tolist()
    expected = f"{[0.0, 2.0, 4.0, 6.0, 20.0, 22.0, 24.0, 26.0]} {key}"
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert expected in out


def test_whole_on_one_device_gathers_what_is_split_and_copies_nothing_else():
    mesh = make_mesh()
    rows = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    tree = {"split": to_global(rows, mesh), "replicated": replicate(rows, mesh)}
    with jax.transfer_guard("disallow"):
        whole = whole_on_one_device(tree, mesh)
    for array in whole.values():
        np.testing.assert_array_equal(array, rows)
        assert array.devices() == {jax.devices()[0]}
    first = tree["replicated"].addressable_data(0)
    assert whole["replicated"].unsafe_buffer_pointer() == first.unsafe_buffer_pointer()
