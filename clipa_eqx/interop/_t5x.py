"""Checkpoint folders of t5x, in which CLIPA's branch t5x keeps its runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import Arrays


_INDEX = "checkpoint"
"""The one file in the folder: msgpack with the small arrays, and what is known of the large ones."""
_WEIGHTS = "target"
# Flax marks a NumPy array in msgpack with this number.
_ARRAY = 1


class T5X(Arrays):
    """The weights of a t5x checkpoint; optimiser states beside them are left out.

    A large array is a zarr folder of its own, named by its path with dots; which folder it is follows from its name
    alone, so that an index cannot point elsewhere. A small one lies in the index (t5x/checkpoints.py).
    """

    def __init__(self, path: Path) -> None:
        """Open a folder.

        Args:
            path: the folder `checkpoint_N`, not the run's.

        Raises:
            FileNotFoundError: it has no index.
            ValueError: its index is damaged or holds no weights, or the folder of an array is missing.
        """
        self._path = path
        if not (path / _INDEX).is_file():
            raise FileNotFoundError(f"{path} is no t5x checkpoint: it has no file {_INDEX}; give a run's checkpoint_N.")
        self._small: dict[str, np.ndarray] = {}
        self._large: dict[str, Any] = {}
        for name, value in _flat(_read_index(path / _INDEX), f"{_WEIGHTS}/"):
            if isinstance(value, np.ndarray):
                self._small[name] = value
            else:
                self._large[name] = _open_zarr(path / name.replace("/", "."))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._small[name].shape if name in self._small else tuple(self._large[name].shape)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._small:
            return self._small[name]
        try:
            return self._large[name].read().result()
        except ValueError as error:
            raise ValueError(f"{self._path}: {name} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        yield from self._small
        yield from self._large

    def __len__(self) -> int:
        return len(self._small) + len(self._large)


def _read_index(path: Path) -> Mapping[str, Any]:
    import msgpack

    try:
        values = msgpack.unpackb(path.read_bytes(), ext_hook=_read_array)
        weights = values["optimizer"][_WEIGHTS]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"{path} is no index of a t5x checkpoint: {error!r}.") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} is no index of a t5x checkpoint: its {_WEIGHTS} is {type(weights).__name__}.")
    return weights


def _read_array(code: int, data: bytes) -> Any:
    import jax.numpy as jnp
    import msgpack

    if code != _ARRAY:
        return None
    shape, name, content = msgpack.unpackb(data)
    dtype = jnp.bfloat16 if name == "bfloat16" else np.dtype(name)
    if np.dtype(dtype).hasobject:
        raise ValueError("an array of Python objects")
    return np.frombuffer(content, dtype).reshape(shape)


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        # What is known of an array in a folder of its own is a dictionary too.
        if isinstance(value, dict) and "driver" not in value:
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value


def _open_zarr(folder: Path) -> Any:
    import tensorstore

    if not folder.is_dir():
        raise ValueError(f"{folder.parent} is no whole t5x checkpoint: it has no folder {folder.name}.")
    try:
        return tensorstore.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}).result()
    except ValueError as error:
        raise ValueError(f"{folder} is no zarr folder: {error}") from error
