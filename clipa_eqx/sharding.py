"""Data parallelism: one mesh axis over all devices, batches split along it, everything else on every device."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P


DATA_AXIS = "data"
"""Name of the mesh axis along which a batch is split."""

_T = TypeVar("_T")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """A mesh of one axis, `DATA_AXIS`, on which the devices of each process lie side by side.

    That order makes the rows of a global batch that one process holds contiguous, in the order of the processes.

    Args:
        devices: devices of all processes; None: all there are.

    Returns:
        The mesh.

    Raises:
        ValueError: no devices, or one named twice.
    """
    if devices is None:
        devices = jax.devices()
    if not devices or len(set(devices)) != len(devices):
        raise ValueError(f"A mesh needs one device or more, each named once; got {list(devices)}.")
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices of the mesh."""
    return NamedSharding(mesh, P(DATA_AXIS))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The same value on every device of the mesh."""
    return NamedSharding(mesh, P())


def to_global(batch: _T, mesh: Mesh) -> _T:
    """Turn the rows that each process read into global arrays split over the mesh.

    No data passes between processes: each places its rows on its own devices, and the global batch is the rows of
    all processes in the order of the mesh. Every process calls it with the same number of rows.

    Args:
        batch: arrays on the host, one row per example of this process; all with the same number of rows.
        mesh: from `make_mesh`.

    Returns:
        The same tree of global `jax.Array`s.

    Raises:
        ValueError: an array without rows, arrays that disagree on their number, or rows that do not split over this
            process's devices.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    num_rows = {shape[0] if shape else 0 for shape in shapes}
    num_devices = len(mesh.local_devices)
    if len(num_rows) > 1 or 0 in num_rows:
        raise ValueError(f"The arrays of a batch need the same number of rows, at least 1; got the shapes {shapes}.")
    for count in num_rows:
        if count % num_devices:
            raise ValueError(
                f"A batch of {count} rows does not split over the {num_devices} devices of this process; "
                f"use a multiple of {num_devices}."
            )
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def replicate(tree: _T, mesh: Mesh) -> _T:
    """Put every array of a tree on all devices of the mesh; other leaves stay as they are.

    Works across processes too, where each must hold the same values. An array that already lies there is not copied,
    so it is gone once the result is donated.

    Args:
        tree: for example a model or a training state, random keys included; arrays on the host or on a device.
        mesh: from `make_mesh`.

    Returns:
        The same tree of global arrays.
    """
    sharding = replicated_sharding(mesh)

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # Keys themselves cannot be sent to the devices of other processes, their numbers can.
            data = jax.device_put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, sharding)

    return jax.tree.map(put, tree)
