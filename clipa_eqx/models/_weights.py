"""A model as one safetensors file that holds its config too."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ..config import CLIPConfig, config_from_json, config_to_json
from ._clip import CLIP, make_clip


# The one entry of the file's metadata. More than one would be written in an order that changes from process to process,
# and equal models should be equal files.
_CONFIG_KEY = "clipa_eqx.config"


def save_weights(model: CLIP, path: Path) -> None:
    """Write a model's arrays, named by their path in the module, with its config in the file's metadata.

    The file appears only when it is whole: it is written beside its place and then renamed.
    """
    arrays = {name: np.asarray(array) for name, array in _named_leaves(model)}
    metadata = {_CONFIG_KEY: json.dumps(config_to_json(model.config))}
    partial = path.with_suffix(path.suffix + ".partial")
    safetensors.numpy.save_file(arrays, partial, metadata=metadata)
    partial.replace(path)


def load_weights(path: Path) -> CLIP:
    """Read a model that [`save_weights`][clipa_eqx.models.save_weights] wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or its arrays do not fit its config.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _CONFIG_KEY not in metadata:
                raise ValueError(f"{path} was not written by clipa_eqx: its metadata is {sorted(metadata)}.")
            config = config_from_json(CLIPConfig, json.loads(metadata[_CONFIG_KEY]))
            shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
            arrays = _checked_arrays(file, shapes, path)
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not a whole safetensors file of a model: {error}.") from error
    treedef = jax.tree.structure(shapes)
    return jax.tree.unflatten(treedef, arrays)


def _checked_arrays(file: Any, shapes: CLIP, path: Path) -> list[jax.Array]:
    expected = dict(_named_leaves(shapes))
    found = set(file.keys())
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or extra:
        raise ValueError(f"{path} does not fit its config: missing {missing[:5]}, unexpected {extra[:5]}.")
    arrays = []
    for name, leaf in expected.items():
        array = file.get_tensor(name)
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise ValueError(
                f"{path}: {name} is {array.dtype}{array.shape}, its config needs {leaf.dtype}{leaf.shape}."
            )
        arrays.append(jnp.asarray(array))
    return arrays


def _named_leaves(tree: CLIP) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
