"""Arrays as Flax's modules name and shape them, in the checkpoints of CLIPA-JAX and big_vision."""

import math
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..models import presets
from ._arrays import Arrays, open_arrays, Renamed
from ._mapping import joined, Layout, Rule, same, split_axis
from ._t5x import T5X


_PARAMETERS = ("params/", "opt/target/", "target/")
"""Where a checkpoint of a run keeps its weights: beside an optax state, inside a Flax optimiser, in a t5x state."""
_OTHERS = ("opt/", "state/", "chrono", "params_axes/")
"""What may lie beside weights that have no such prefix."""
_OLD_NAMES = {
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
}
"""Flax once numbered all modules of a block in one row; now each class has a row of its own."""


class Encoder(NamedTuple):
    """A run of blocks in a checkpoint: where they are and their sizes."""

    prefix: str
    """Beginning of the blocks' names, with `{i}` for the number where each block has arrays of its own."""
    width: int
    depth: int
    hidden: int
    heads: int
    joined_heads: bool
    """Heads and their features are one axis, as on CLIPA's branch t5x."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of a tower's config that the blocks decide."""
        return {"width": self.width, "depth": self.depth, "hidden": self.hidden, "heads": self.heads}


def read_parameters(path: Path | str) -> Arrays:
    """The weights of an npz checkpoint or a t5x folder, by their names below its `params` or `target`.

    Optimiser states beside them are left out, bfloat16 arrays (which NumPy stores without their type) are told apart,
    and names of ViTs before Flax's present API become today's.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no index.
        ValueError: it is not an npz file of arrays, or no whole t5x folder.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".npz":
        raise ValueError(f"{path} is no npz file; checkpoints of CLIPA-JAX and big_vision are.")
    arrays = T5X(path) if path.is_dir() else open_arrays(path)
    root = next((root for root in _PARAMETERS if any(name.startswith(root) for name in arrays)), "")
    kept = [name for name in arrays if name.startswith(root) and (root or not name.startswith(_OTHERS))]
    return _Typed(arrays, {_present_name(name.removeprefix(root)): name for name in kept})


class _Typed(Renamed):
    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def _present_name(name: str) -> str:
    for old in ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"):
        name = name.replace(old, "pos_embedding")
    # Attention pooling once lay in the tower itself.
    name = re.sub(r"^(img/)?(probe|MlpBlock_0|MultiHeadDotProductAttention_0|LayerNorm_0)\b", r"\1MAPHead_0/\2", name)
    return "/".join(_OLD_NAMES.get(part, part) for part in name.split("/"))


def read_encoder(
    arrays: Arrays, place: str, *, tower: Literal["image", "text"] = "image", heads: int | None = None
) -> Encoder:
    """Read the sizes of a run of blocks off its arrays.

    Args:
        arrays: the checkpoint.
        place: where the blocks are, as `img/Transformer`.
        tower: which tower they belong to; decides the heads where arrays do not.
        heads: the heads, where arrays do not tell them and no known tower has this width.

    Raises:
        ValueError: there are no blocks, or their sizes cannot be told.
    """
    numbers = {int(found[1]) for name in arrays if (found := re.match(rf"{place}/encoderblock_(\d+)/", name))}
    prefix = f"{place}/encoderblock_{{i}}/" if numbers else f"{place}/encoderblock/"
    first = prefix.replace("{i}", "0")
    stacked = 0 if numbers else 1
    *_, hidden = widen = shape_of(arrays, f"{first}MlpBlock_0/Dense_0/kernel", 2 + stacked)
    query = shape_of(arrays, f"{first}MultiHeadDotProductAttention_0/query/kernel", 2 + stacked, 3 + stacked)
    width, *rest = query[stacked:]
    joined_heads = len(rest) == 1
    found = _known_heads(width, tower, heads) if joined_heads else rest[0]
    return Encoder(prefix, width, len(numbers) or widen[0], hidden, found, joined_heads)


def _known_heads(width: int, tower: Literal["image", "text"], heads: int | None) -> int:
    published = (config for name, config in presets.items() if name.startswith("clipa-"))
    towers = (config.vision if tower == "image" else config.text for config in published)
    sizes = {config.width: config.heads for config in towers}
    if heads is None and width not in sizes:
        raise ValueError(
            f"Kernels of this file join heads and their features, and no known {tower} tower has width {width}; "
            "give the numbers of heads."
        )
    return heads or sizes[width]


def shape_of(arrays: Arrays, name: str, *axes: int) -> tuple[int, ...]:
    """Shape of an array, of one of these numbers of axes.

    Raises:
        ValueError: there is none of that name, or it has another number of axes.
    """
    if name not in arrays:
        there = ", ".join(sorted({"/".join(other.split("/")[:2]) for other in arrays})[:12])
        raise ValueError(f"The checkpoint has no {name}; it has {there or 'nothing'}.")
    shape = arrays.shape(name)
    if len(shape) not in axes:
        raise ValueError(f"{name} has shape {shape}; it needs {' or '.join(map(str, axes))} axes.")
    return shape


def read_grid(arrays: Arrays, name: str) -> tuple[int, bool]:
    """Side of the square grid that a stored position table covers, and whether it has a row for the class token.

    Raises:
        ValueError: its rows make no square.
    """
    _, rows, _ = shape_of(arrays, name, 3)
    for class_row in (False, True):
        side = math.isqrt(max(rows - class_row, 0))
        if side and side * side + class_row == rows:
            return side, class_row
    raise ValueError(f"{name} has {rows} rows, which are no square grid with or without a class token.")


def read_patch_size(arrays: Arrays, name: str) -> int:
    """Side of a patch, from the kernel (side, side, 3, dim) of the patch embedding.

    Raises:
        ValueError: patches are not square or not of three channels.
    """
    shape = shape_of(arrays, name, 4)
    if shape[0] != shape[1] or shape[2] != 3:
        raise ValueError(f"{name} has shape {shape}; square patches of three channels, (side, side, 3, dim), are read.")
    return shape[0]


def block_rules(tower: str, encoder: Encoder) -> list[Rule]:
    """Rules of all blocks of a tower.

    Args:
        tower: `vision` or `text`.
        encoder: the blocks in the checkpoint.
    """
    ours, theirs = f"{tower}.stack.blocks", encoder.prefix
    heads: Layout = same if encoder.joined_heads else split_axis(-1, encoder.heads)
    out: Layout = same if encoder.joined_heads else split_axis(-2, encoder.heads)
    return [
        *norm_rules(f"{ours}.attention_norm", f"{theirs}LayerNorm_0"),
        *attention_rules(f"{ours}.attention", "qkv", ("query", "key", "value"), theirs, heads, out),
        *norm_rules(f"{ours}.mlp_norm", f"{theirs}LayerNorm_1"),
        *linear_rules(f"{ours}.mlp.widen", f"{theirs}MlpBlock_0/Dense_0"),
        *linear_rules(f"{ours}.mlp.narrow", f"{theirs}MlpBlock_0/Dense_1"),
    ]


def attention_rules(
    ours: str, fused: str, parts: tuple[str, ...], theirs: str, heads: Layout, out: Layout
) -> list[Rule]:
    """Rules of one attention: our fused layer `fused` stands for their `parts`, beside the layer `out`."""
    place = f"{theirs}MultiHeadDotProductAttention_0"
    kernels, biases = (tuple(f"{place}/{part}/{leaf}" for part in parts) for leaf in ("kernel", "bias"))
    return [
        Rule(f"{ours}.{fused}.weight", kernels, joined(len(parts), heads)),
        Rule(f"{ours}.{fused}.bias", biases, joined(len(parts), heads)),
        Rule(f"{ours}.out.weight", f"{place}/out/kernel", out),
        Rule(f"{ours}.out.bias", f"{place}/out/bias"),
    ]


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules of a layer norm."""
    return [Rule(f"{ours}.scale", f"{theirs}/scale"), Rule(f"{ours}.bias", f"{theirs}/bias")]


def linear_rules(ours: str, theirs: str, *, bias: bool = True) -> list[Rule]:
    """Rules of a linear layer."""
    rules = [Rule(f"{ours}.weight", f"{theirs}/kernel")]
    return [*rules, Rule(f"{ours}.bias", f"{theirs}/bias")] if bias else rules
