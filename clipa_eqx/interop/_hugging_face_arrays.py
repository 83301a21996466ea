"""The weight files of a Hugging Face directory, whole or in shards, and the one array that is cut otherwise here."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._arrays import Arrays, open_arrays


_FILES = ("model.safetensors", "pytorch_model.bin")
_PROBE = "vision_model.head.attention."


def open_weights(root: Path) -> Arrays:
    """Open the weights of a directory: safetensors before PyTorch's files, a whole file before shards.

    Raises:
        FileNotFoundError: the directory has none, or lacks a shard.
        ValueError: a file is damaged.
        ImportError: the weights are a PyTorch file, and PyTorch is not installed.
    """
    for name in _FILES:
        if (root / name).is_file():
            return open_arrays(root / name)
        if (root / f"{name}.index.json").is_file():
            return _Shards(root / f"{name}.index.json")
    raise FileNotFoundError(f"{root} has no weights: it needs {' or '.join(_FILES)}, whole or in shards.")


class _Shards(Arrays):
    def __init__(self, index: Path) -> None:
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = set(places.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} does not say which array is in which file: {error!r}.") from error
        outside = [file for file in files if not isinstance(file, str) or Path(file).name != file]
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
        shards = {file: open_arrays(index.parent / file) for file in sorted(files)}
        lost = [name for name, file in places.items() if name not in shards[file]]
        if lost:
            raise ValueError(f"{index} expects {lost[0]} in {places[lost[0]]}, which does not hold it.")
        self._shards: dict[str, Arrays] = {name: shards[file] for name, file in places.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shards[name].shape(name)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._shards[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


class SplitProbe(Arrays):
    """The arrays of a SiglipModel, with its pooling probe's projection cut as this package does.

    There, queries, keys and values are rows of one `in_proj`; here, queries are one array, keys and values another:
    they appear as `query` and `key_value`. `join_probe` is the inverse.
    """

    def __init__(self, arrays: Arrays) -> None:
        """Wrap the arrays; nothing is read yet."""
        self._arrays = arrays
        self._parts: dict[str, tuple[str, slice]] = {}
        for leaf in ("weight", "bias"):
            fused = f"{_PROBE}in_proj_{leaf}"
            if fused in arrays:
                third = (*arrays.shape(fused), 0)[0] // 3
                self._parts[f"{_PROBE}query.{leaf}"] = fused, slice(third)
                self._parts[f"{_PROBE}key_value.{leaf}"] = fused, slice(third, None)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._parts:
            return self._arrays.shape(name)
        fused, rows = self._parts[name]
        count, *rest = self._arrays.shape(fused)
        return len(range(*rows.indices(count))), *rest

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._parts:
            return self._arrays[name]
        fused, rows = self._parts[name]
        return self._arrays[fused][rows]

    def __iter__(self) -> Iterator[str]:
        fused = {name for name, _ in self._parts.values()}
        yield from (name for name in self._arrays if name not in fused)
        yield from self._parts

    def __len__(self) -> int:
        return len(self._arrays) + len(self._parts) // 2


def join_probe(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of this package's cut as SiglipModel has them: the inverse of `SplitProbe`."""
    joined = dict(arrays)
    for leaf in ("weight", "bias"):
        parts = [joined.pop(f"{_PROBE}{part}.{leaf}") for part in ("query", "key_value")]
        joined[f"{_PROBE}in_proj_{leaf}"] = np.concatenate(parts)
    return joined
