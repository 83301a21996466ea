"""A model as one safetensors file that holds its config too."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from ..config import CLIPConfig, config_from_json, config_to_json
from ._clip import CLIP, make_clip


# The one entry of the file's metadata. More than one would be written in an order that changes from process to process,
# and equal models should be equal files.
_CONFIG_KEY = "clipa_eqx.config"
_PIECE = 2**24
"""Bytes that are read at once: arrays of all blocks together are a quarter of a model."""


def save_weights(model: CLIP, path: Path | str) -> None:
    """Write a model's arrays, named by their path in the module, with its config in the file's metadata.

    The file appears only when it is whole: it is written beside its place and then renamed.
    """
    arrays = {name: np.asarray(array) for name, array in named_leaves(model).items()}
    metadata = {_CONFIG_KEY: json.dumps(config_to_json(model.config))}
    path = Path(path)
    partial = path.with_suffix(path.suffix + ".partial")
    safetensors.numpy.save_file(arrays, partial, metadata=metadata)
    partial.replace(path)


def weights_digest(model: CLIP) -> str:
    """SHA-256 of a model's arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(named_leaves(model).items()):
        host = np.ascontiguousarray(array)
        digest.update(f"{name} {host.dtype} {host.shape}".encode())
        digest.update(host.view(np.uint8).reshape(-1).data if host.size else b"")
    return digest.hexdigest()


def load_weights(path: Path | str) -> CLIP:
    """Read a model that [`save_weights`][clipa_eqx.models.save_weights] wrote.

    It needs little more memory than the model itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or its arrays do not fit its config.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        with _open(path) as file:
            metadata, found = file.metadata() or {}, set(file.keys())
        if _CONFIG_KEY not in metadata:
            raise ValueError(f"{path} was not written by clipa_eqx: its metadata is {sorted(metadata)}.")
        config = config_from_json(CLIPConfig, json.loads(metadata[_CONFIG_KEY]))
        shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
        expected = named_leaves(shapes)
        missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
        if missing or extra:
            raise ValueError(f"{path} does not fit its config: missing {missing[:5]}, unexpected {extra[:5]}.")
        arrays = [_read_array(path, name, leaf) for name, leaf in expected.items()]
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not a whole safetensors file of a model: {error}.") from error
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The arrays of a model by their path in the module, in the module's order.

    Args:
        tree: a model, a part of one, or the same with shapes for arrays.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array to fill and to hand to `jax.device_put`, which takes it over without a copy on a CPU.

    JAX does so if the array begins at a multiple of 64 bytes; NumPy's own begin at 16.
    """
    size = dtype.itemsize * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


# The file is mapped into memory, and its pages count as this process's own for as long as it stays open; so it is
# opened anew for each piece.
def _open(path: Path) -> Any:
    return safetensors.safe_open(path, framework="numpy")


def _read_array(path: Path, name: str, leaf: Any) -> jax.Array:
    with _open(path) as file:
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
    if shape != leaf.shape or dtype != "F32":
        raise ValueError(f"{path}: {name} is {dtype} of shape {shape}, its config needs F32 of shape {leaf.shape}.")
    array = aligned_empty(shape, np.dtype(np.float32))
    rows = -(-_PIECE * shape[0] // array.nbytes) if shape else 1
    pieces = [slice(i, min(i + rows, shape[0])) for i in range(0, shape[0], rows)] if shape else [...]
    for piece in pieces:
        with _open(path) as file:
            array[piece] = file.get_slice(name)[piece]
    return jax.device_put(array)
