"""One mesh axis over all devices: batches split along it by rows, weights whole on every device or split as well."""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array

from .termination import meet


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
    return place(tree, jax.tree.map(lambda _: replicated_sharding(mesh), tree))


def place(tree: _T, shardings: Any) -> _T:
    """As `replicate`, each array in a sharding of its own.

    Args:
        tree: arrays on the host, on devices of this process or on the mesh of all, and other leaves.
        shardings: the same tree of `NamedSharding`.
    """

    def put(leaf: Any, sharding: NamedSharding) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return _put(leaf, sharding)

    return jax.tree.map(put, tree, shardings)


def _put(array: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    """As `jax.device_put`, also for what lies on one device of this process and goes to those of all.

    `jax.device_put` takes such an array for a transfer between hosts, which CPUs cannot do; and to be sure that the
    processes agree it would send all values from one to the others, though each needs but its own part.
    """
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    if sharding.is_fully_addressable or spread:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def weight_specs(tree: Any, num_devices: int) -> Any:
    """How the arrays of a model, or of a tree that repeats its names and shapes, are split over the devices.

    A matrix is split along its first axis that the devices divide. The axis over the depth of a stack does not count,
    so that one block after another can be gathered. Vectors and scalars, a thousandth of a model, stay whole.

    Args:
        tree: a model, an optimiser state or an average of weights; shapes suffice.
        num_devices: devices on the axis, at least 1.

    Returns:
        The same tree of `PartitionSpec`.

    Raises:
        ValueError: matrices that no axis splits, all of them named.
    """
    uneven: list[str] = []

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        first = 1 if any(getattr(entry, "name", None) == "blocks" for entry in path) else 0
        if len(leaf.shape) - first < 2:
            return P()
        for axis in range(first, len(leaf.shape)):
            if leaf.shape[axis] % num_devices == 0:
                return P(*[None] * axis, DATA_AXIS)
        uneven.append(f"{jax.tree_util.keystr(path, simple=True, separator='.')} {leaf.shape}")
        return P()

    specs = jax.tree_util.tree_map_with_path(spec, tree)
    if uneven:
        raise ValueError(
            f"No axis of these arrays splits over {num_devices} devices: {', '.join(uneven)}; use a number of devices "
            "that divides the towers' widths, or shard='none'."
        )
    return specs


def split_axis(spec: P) -> int | None:
    """The axis along which a spec splits an array over the mesh; None: each device holds the whole."""
    return spec.index(DATA_AXIS) if DATA_AXIS in spec else None


def gather(array: Array, spec: P) -> Array:
    """Inside `jax.shard_map`: the whole of an array of which this device holds the part that `spec` says."""
    axis = split_axis(spec)
    return array if axis is None else jax.lax.all_gather(array, DATA_AXIS, axis=axis, tiled=True)


def to_own(array: Array, spec: P) -> Array:
    """Inside `jax.shard_map`: an array that is the same on all devices as one of this device's own.

    Its gradient is then this device's share, which `sum_over_devices` adds up once; otherwise each use would.
    """
    return jax.lax.pcast(array, DATA_AXIS, to="varying") if split_axis(spec) is None else array


def sum_over_devices(grad: Array, held: P, wanted: P) -> Array:
    """Inside `jax.shard_map`: the gradient over all devices from each device's share of it.

    Args:
        grad: with respect to what `to_own` gave.
        held: how the parameter lies. The gradient of a split one is summed already: the transpose of `gather` does it.
        wanted: how the gradient is to lie; split if the parameter is.
    """
    if split_axis(held) is not None:
        return grad
    axis = split_axis(wanted)
    if axis is None:
        return jax.lax.psum(grad, DATA_AXIS)
    if jax.lax.axis_size(DATA_AXIS) == 1:
        return grad  # XLA would copy it: a sum over one device is no empty operation on a CPU.
    return jax.lax.psum_scatter(grad, DATA_AXIS, scatter_dimension=axis, tiled=True)


def whole_on_one_device(tree: _T, mesh: Mesh) -> _T:
    """Global arrays as whole arrays of one device of this process, gathered where they are split.

    Every process calls it. One array after the other passes between the devices, so that no device but the one holds
    all of them. An array that is replicated is not copied, so it is gone once that is donated.
    """

    def whole(array: jax.Array) -> jax.Array:
        gathered = array if array.is_fully_replicated else _gather_whole(mesh)(array)
        return gathered.addressable_data(0)

    return jax.tree.map(whole, tree)


@functools.cache
def _gather_whole(mesh: Mesh) -> jax.stages.Wrapped:
    """Gathers on the devices; `jax.device_put` would take a split array through the host."""
    return jax.jit(lambda array: array, out_shardings=replicated_sharding(mesh))


def rows_of_all(rows: np.ndarray) -> np.ndarray:
    """Rows that each process holds on its host, put together on every host in the order of the processes.

    Args:
        rows: as many on each process.

    Raises:
        Terminated: on all processes, if SIGTERM came to one.
    """
    if jax.process_count() == 1:
        return rows
    # An exchange that has begun cannot be given up.
    meet()
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def texts_of_all(text: str) -> list[str]:
    """The text that each process gives, on every process, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = rows_of_all(np.array([data.size]))
    padded = np.zeros((1, sizes.max()), np.uint8)
    padded[0, : data.size] = data
    return [bytes(row[:size]).decode() for row, size in zip(rows_of_all(padded), sizes, strict=True)]
