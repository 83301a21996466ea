"""Tables that name each of our arrays and theirs; one walk imports, the other exports.

A layout turns one of our arrays into views that have the shapes of theirs. Reading the views exports; writing into them
imports. So the two directions cannot disagree, and stacked arrays are filled in place, block by block.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from ..config import CLIPConfig, VisionConfig
from ..models import aligned_empty, CLIP, make_clip, named_leaves, VisionTower
from ._arrays import Arrays


Layout = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Views of one of our arrays in the shapes of theirs, one per name of theirs."""

_T = TypeVar("_T")

_RESAMPLE = (
    "positions are not resampled unasked: load the model with the image size and context length of its tables, and "
    "move it by image_size and context_length of load_pretrained, by `clipa import --image-size`, or by `transfer`"
)


def same(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """No change."""
    return (array,)


def transposed(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """(..., inputs, outputs) as (..., outputs, inputs): linear layers of PyTorch."""
    return (array.swapaxes(-1, -2),)


def joined(parts: int, layout: Layout = same) -> Layout:
    """Columns of ours, cut into equal parts, each with a layout of its own: fused queries, keys and values."""

    def views(array: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(view for part in np.split(array, parts, axis=-1) for view in layout(part))

    return views


def split_axis(axis: int, parts: int) -> Layout:
    """One axis as two, the first of them of size `parts`: Flax's (heads, head_dim).

    Args:
        axis: which axis, counted from the end: -1 or -2.
        parts: size of the first of the two axes.
    """

    def views(array: np.ndarray) -> tuple[np.ndarray, ...]:
        place = array.ndim + axis
        return (array.reshape(*array.shape[:place], parts, -1, *array.shape[place + 1 :]),)

    return views


def leading_axes(count: int) -> Layout:
    """Axes of size 1 in front: (1, tokens, dim) and the like."""
    return lambda array: (array.reshape(*(1,) * count, *array.shape),)


def patch_torch(side: int) -> Layout:
    """(side * side * 3, dim), rows by (y, x, channel), as a convolution's (dim, 3, side, side)."""
    return lambda array: (array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1),)


def patch_flax(side: int) -> Layout:
    """(side * side * 3, dim) as a convolution's (side, side, 3, dim)."""
    return lambda array: (array.reshape(side, side, 3, -1),)


@dataclass(frozen=True)
class Rule:
    """Where one of our arrays is in a foreign checkpoint."""

    ours: str
    """Path of the array in `CLIP`, as `vision.stack.blocks.attention.qkv.weight`."""
    theirs: str | tuple[str, ...]
    """Their name, or names, in the order of the layout's views. With `{i}`, one array per block; without it, a stacked
    array of ours is stacked in the same way there."""
    layout: Layout = same
    """How the array changes; the default: not at all."""
    class_row: bool = False
    """Their table has a first row for the class token. On import it is added to the class token, on export it is 0."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def import_arrays(
    rules: Sequence[Rule], source: Mapping[str, np.ndarray], config: CLIPConfig, *, ignored: Sequence[str] = ()
) -> CLIP:
    """Build a model from foreign arrays.

    Args:
        rules: one per array that a model of `config` has.
        source: the arrays, of any floating type; they become float32. Each is asked for once.
        config: the model.
        ignored: shell patterns of names that may be there and carry no weights.

    Raises:
        ValueError: a name is missing or unexpected, or an array has another shape or type. The message names the part
            of the model.
    """
    return _filled(eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0)), "", rules, source, ignored)


def import_vision(
    rules: Sequence[Rule],
    source: Mapping[str, np.ndarray],
    config: VisionConfig,
    embed: int,
    *,
    ignored: Sequence[str] = (),
) -> VisionTower:
    """Build an image tower from foreign arrays, as `import_arrays` builds a model.

    Args:
        rules: one per array that a tower of `config` has, our names beginning with `vision.` as in a whole model.
        source: the arrays.
        config: the tower.
        embed: width of the joint space; the tower's own width where it has no projection.
        ignored: shell patterns of names that may be there and carry no weights.

    Raises:
        ValueError: as `import_arrays`.
    """
    shapes = eqx.filter_eval_shape(make_clip, CLIPConfig(embed=embed, vision=config), key=jax.random.key(0)).vision
    return _filled(shapes, "vision.", rules, source, ignored)


def export_arrays(rules: Sequence[Rule], model: CLIP) -> dict[str, np.ndarray]:
    """A model's arrays under foreign names, float32; the inverse of `import_arrays`.

    Args:
        rules: one per array of the model.
        model: the model.

    Raises:
        ValueError: the rules do not name just the arrays that the model has.
    """
    leaves = named_leaves(model)
    _check_covered(rules, leaves)
    arrays: dict[str, np.ndarray] = {}
    for rule in rules:
        array = np.asarray(leaves[rule.ours], np.float32)
        if rule.class_row:
            array = np.concatenate([np.zeros_like(array[:1]), array])
        # Not `ascontiguousarray`, which gives a number without axes one.
        arrays |= {name: np.asarray(view, order="C") for name, view in _their_views(rule, array)}
    return arrays


def _filled(
    shapes: _T, prefix: str, rules: Sequence[Rule], source: Mapping[str, np.ndarray], ignored: Sequence[str]
) -> _T:
    leaves = {prefix + name: leaf for name, leaf in named_leaves(shapes).items()}
    _check_covered(rules, leaves)
    # Nothing of a config's size is made before the file has been seen to hold as much.
    _check_names(rules, leaves, source, ignored)
    _check_shapes(rules, leaves, source)
    arrays: dict[str, np.ndarray] = {}
    class_row = None
    for rule in rules:
        array = aligned_empty(_stored_shape(rule, leaves), np.dtype(np.float32))
        for name, view in _their_views(rule, array):
            _copy(view, source[name], name, rule)
        if rule.class_row:
            class_row, array = array[0], array[1:]
        arrays[rule.ours] = array
    if class_row is not None:
        arrays["vision.class_token"] += class_row
    return jax.tree.unflatten(jax.tree.structure(shapes), [jax.device_put(arrays[name]) for name in leaves])


def _their_views(rule: Rule, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of their name and the part of our array that it stands for."""
    for index, part in enumerate(array if _per_block(rule) else [array]):
        for name, view in zip(rule.names, rule.layout(part), strict=True):
            yield name.replace("{i}", str(index)), view


def _copy(view: np.ndarray, array: np.ndarray, name: str, rule: Rule) -> None:
    # bfloat16 is no type of NumPy's own; it is the only foreign one that readers hand out.
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} for {_part(rule.ours)} is {array.dtype}; weights must be floating-point numbers.")
    view[...] = array.reshape(view.shape)


def _check_covered(rules: Sequence[Rule], leaves: Mapping[str, Any]) -> None:
    covered = {rule.ours for rule in rules}
    if covered != set(leaves) or len(covered) != len(rules):
        raise ValueError(
            f"The table does not fit the model: no rule for {sorted(set(leaves) - covered)}, "
            f"no array for {sorted(covered - set(leaves))}."
        )


def _check_names(
    rules: Sequence[Rule], leaves: Mapping[str, Any], source: Mapping[str, np.ndarray], ignored: Sequence[str]
) -> None:
    expected: dict[str, str] = {}
    for rule in rules:
        blocks = leaves[rule.ours].shape[0] if _per_block(rule) else 1
        if blocks > len(source):
            raise ValueError(
                f"The weights do not fit the model: {blocks} blocks, but {len(source)} arrays in the file."
            )
        expected |= {
            name.replace("{i}", str(index)): _part(rule.ours) for name in rule.names for index in range(blocks)
        }
    missing = [f"{name} ({part})" for name, part in expected.items() if name not in source]
    unexpected = [
        f"{name} ({_nearest_part(name, expected)})"
        for name in source
        if name not in expected and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if missing or unexpected:
        faults = [_listed("missing", missing), _listed("unexpected", unexpected)]
        raise ValueError(f"The weights do not fit the model: {'; '.join(filter(None, faults))}.")


def _check_shapes(rules: Sequence[Rule], leaves: Mapping[str, Any], source: Mapping[str, np.ndarray]) -> None:
    for rule in rules:
        # Views of one number: shapes without memory.
        ours = np.broadcast_to(np.float32(0), _stored_shape(rule, leaves))
        for name, view in _their_views(rule, ours):
            shape = source.shape(name) if isinstance(source, Arrays) else source[name].shape
            # Scalars are stored as () by some and as (1,) by others.
            if shape != view.shape and not math.prod(shape) == view.size == 1:
                remedy = _RESAMPLE if rule.ours.endswith(".position") else "the weights belong to another config"
                raise ValueError(f"{name} has shape {shape}, but {_part(rule.ours)} needs {view.shape}; {remedy}.")


def _stored_shape(rule: Rule, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    shape = leaves[rule.ours].shape
    return (shape[0] + 1, *shape[1:]) if rule.class_row else shape


def _per_block(rule: Rule) -> bool:
    return any("{i}" in name for name in rule.names)


def _listed(what: str, names: Sequence[str], most: int = 6) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}"


def _part(ours: str) -> str:
    """A leaf's place in the model in words, the tower first: `text blocks attention.qkv.weight`."""
    tower, _, rest = ours.partition(".")
    return f"{tower} {rest.replace('stack.blocks.', 'blocks ')}".strip()


def _nearest_part(name: str, expected: Mapping[str, str]) -> str:
    """The tower whose names begin most like `name`."""

    def shared(other: str) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other))
        )

    nearest = max(expected, key=shared, default="")
    return expected[nearest].split(" ")[0] if nearest and shared(nearest) else "no part of this model"
