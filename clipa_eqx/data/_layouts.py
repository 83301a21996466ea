"""How a set of pairs is laid out, and which of the files at its path are its shards."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..config import DataConfig
from .formats._array_record_format import ArrayRecordFormat
from .formats._arrow_format import ArrowFormat
from .formats._fields import PairFields
from .formats._format import ShardFormat
from .formats._parquet_format import ParquetFormat
from .formats._tar_format import TarFormat
from .formats._tfrecord_format import TFRecordFormat
from .index._shards import find_remote_shards, find_shards
from .io._remote import is_url, RemoteFile


class _Layout(NamedTuple):
    pattern: str
    """Of the names of its shards; TFDS adds -00000-of-00100 to the extension."""
    format: Callable[[PairFields], ShardFormat]


# In this order they are looked for: img2dataset puts a table in Parquet beside each shard of another kind.
_LAYOUTS: Mapping[str, _Layout] = {
    "webdataset": _Layout("*.tar", lambda fields: TarFormat()),
    "tfrecord": _Layout("*.tfrecord*", TFRecordFormat),
    "array-record": _Layout("*.array_record*", ArrayRecordFormat),
    "parquet": _Layout("*.parquet", ParquetFormat),
    "arrow": _Layout("*.arrow", ArrowFormat),
}
_SUBFOLDERS = ("", "data", "train")
"""Where in a folder of `datasets` its shards lie."""
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)


def find_layout(path: Path, config: DataConfig) -> str:
    """The layout that a config names, or the one of what lies at a path."""
    if config.layout != "auto":
        return config.layout
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if path.is_dir():
        return next((name for name in _LAYOUTS if _in_folder(path, name)), "folder")
    return next((name for name, layout in _LAYOUTS.items() if Path(path.name).match(layout.pattern)), "webdataset")


def find_layout_shards(train: str, config: DataConfig) -> tuple[Sequence[Path | RemoteFile], ShardFormat] | None:
    """The shards at a path or address and how they are read; None where the layout is one of single files.

    Of a folder in which splits lie side by side only the shards of the split `train` are taken.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the layout cannot be read over a network.
    """
    if is_url(train):
        name = find_layout(Path(train.partition("?")[0]), config)
        if name not in _LAYOUTS or name == "array-record":
            raise ValueError(f"{train}: layout {name} is not read over a network; copy it to a disk.")
        layout = _LAYOUTS[name]
        return find_remote_shards(train, layout.pattern, config.remote), layout.format(pair_fields(config))
    path = Path(train).expanduser()
    name = find_layout(path, config)
    if name not in _LAYOUTS:
        return None
    format = _LAYOUTS[name].format(pair_fields(config))
    shards = _in_folder(path, name) if path.is_dir() else []
    return shards or find_shards(str(path), _LAYOUTS[name].pattern), format


def pair_fields(config: DataConfig) -> PairFields:
    """The fields that a config names."""
    captions = (name.strip() for name in config.caption_field.split(","))
    return PairFields(config.image_field, tuple(name for name in captions if name))


def _in_folder(folder: Path, layout: str) -> list[Path]:
    """The shards of a layout in a folder, or in the folder in it where `datasets` keeps them."""
    for subfolder in _SUBFOLDERS:
        shards = sorted((folder / subfolder).glob(_LAYOUTS[layout].pattern))
        if layout == "webdataset":
            return shards
        if layout == "parquet":
            shards = [shard for shard in shards if not _is_table(shard)]
        if layout == "arrow":
            shards = _listed(folder / subfolder) or shards
        training = [shard for shard in shards if _TRAIN.search(shard.name)]
        if shards:
            return training or shards
    return []


def _is_table(shard: Path) -> bool:
    """Whether a Parquet file only lists the files in the folder of its name, as img2dataset writes one."""
    return shard.with_suffix("").is_dir()


def _listed(folder: Path) -> list[Path]:
    """The Arrow files that `state.json` names; others that `datasets` leaves there are caches."""
    try:
        files = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [folder / str(file["filename"]) for file in files]
    except (OSError, ValueError, KeyError, TypeError):
        return []
