"""Evaluation sets: images with classes, and images with several captions each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ._files import is_image, list_files
from .formats._captions import LABELS
from .formats._tar_format import TarFormat
from .index._shards import check_index, find_shards, ShardPairs


CLASS_SLOT = "{c}"
"""Stands for the class name in a template, as CLIP_benchmark writes it."""


@runtime_checkable
class _ImageFiles(Protocol):
    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def image(self, index: int) -> bytes: ...


@dataclass(frozen=True)
class ClassificationSet:
    """Images, each of one class. Several threads may read at once."""

    class_names: tuple[str, ...]
    """Name of each class, by label."""
    templates: tuple[str, ...]
    """Prompts with `{c}` for the class name; empty where the set brings none."""
    skipped: dict[str, int]
    """How many files were left out, by reason."""
    labels: Int64[np.ndarray, " images"]
    """Class of each image."""
    images: _ImageFiles
    """Where the image files are."""

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Class of an image."""
        return int(self.labels[index])

    def key(self, index: int) -> str:
        """Which record an image is."""
        return self.images.key(index)

    def read(self, index: int) -> bytes:
        """The image file."""
        return self.images.image(index)


@dataclass(frozen=True)
class RetrievalSet:
    """Images, each with one or more captions. Several threads may read at once."""

    pairs: ShardPairs
    """The images, and their captions in one text each."""

    @property
    def skipped(self) -> dict[str, int]:
        """How many files were left out, by reason."""
        return self.pairs.skipped

    def __len__(self) -> int:
        return len(self.pairs)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an image: the lines of its text that are not blank."""
        lines = (line.strip() for text in self.pairs.captions(index) for line in text.split("\n"))
        return tuple(line for line in lines if line)

    def key(self, index: int) -> str:
        """Which record an image is."""
        return self.pairs.key(index)

    def read(self, index: int) -> bytes:
        """The image file."""
        return self.pairs.image(index)


def open_classification(path: Path | str) -> ClassificationSet:
    """Open a zero-shot classification set.

    Either CLIP_benchmark's webdataset form: tars in the folder `test` (or beside it) with members such as 000.jpg and
    000.cls, and `classnames.txt` with one name per line. Or one folder of images for each class: labels go by the
    sorted names of the folders, which are the class names unless `classnames.txt` gives others. In both,
    `zeroshot_classification_templates.txt` may hold one prompt per line.

    Args:
        path: the set's folder.

    Raises:
        FileNotFoundError: there is no such folder, or no `classnames.txt` beside tars.
        ValueError: there is no image, a label is not that of a class, or names and folders do not agree in number.
    """
    folder = _check_folder(path)
    templates = _read_lines(folder / "zeroshot_classification_templates.txt")
    for template in templates:
        if CLASS_SLOT not in template:
            raise ValueError(f"The template {template!r} of {folder} has no {CLASS_SLOT} for the class name.")
    names = _read_lines(folder / "classnames.txt")
    tars = _find_tars(folder)
    if not tars:
        return _open_class_folders(folder, names, templates)
    if not names:
        raise FileNotFoundError(f"{folder} needs a classnames.txt with one class name per line.")
    images = ShardPairs(tars, TarFormat(LABELS))
    labels = np.array([_parse_label(images, index, len(names)) for index in range(len(images))], np.int64)
    return ClassificationSet(names, templates, images.skipped, labels, images)


def open_retrieval(path: Path | str) -> RetrievalSet:
    """Open a retrieval set: tars with members such as 000.jpg and 000.txt, one caption per line of the text.

    Args:
        path: the set's folder; its tars lie in the folder `test`, as CLIP_benchmark has them, or beside it.

    Raises:
        FileNotFoundError: there is no such folder, or no tar in it.
        ValueError: no image has a caption.
    """
    folder = _check_folder(path)
    tars = _find_tars(folder)
    if not tars:
        raise FileNotFoundError(f"There is no tar in {folder} nor in {folder / 'test'}.")
    return RetrievalSet(ShardPairs(tars, TarFormat()))


@dataclass(frozen=True)
class _FolderImages:
    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return self.names[check_index(index, len(self))]

    def image(self, index: int) -> bytes:
        return (self.root / self.key(index)).read_bytes()


def _open_class_folders(folder: Path, names: tuple[str, ...], templates: tuple[str, ...]) -> ClassificationSet:
    folders = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if names and len(names) != len(folders):
        raise ValueError(f"{folder} has {len(folders)} class folders, but its classnames.txt has {len(names)} names.")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        found = [f"{name}/{file}" for file in list_files(folder / name) if is_image(file)]
        files += found
        labels += [label] * len(found)
    if not files:
        raise ValueError(f"{folder} holds neither tars nor a folder of images for each class.")
    images = _FolderImages(folder, files)
    return ClassificationSet(names or tuple(folders), templates, {}, np.array(labels, np.int64), images)


def _check_folder(path: Path | str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    return folder


def _find_tars(folder: Path) -> list[Path]:
    for place in (folder / "test", folder):
        if place.is_dir() and next(place.glob("*.tar"), None) is not None:
            tars = find_shards(str(place))
            expected = _read_lines(place / "nshards.txt")
            if expected and expected[0] != str(len(tars)):
                raise ValueError(f"{place} holds {len(tars)} tars, but its nshards.txt says {expected[0]}.")
            return tars
    return []


def _parse_label(images: ShardPairs, index: int, classes: int) -> int:
    (text,) = images.captions(index)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < classes):
        raise ValueError(f"{images.key(index)} has the label {text[:20]!r}; it must be one of 0 to {classes - 1}.")
    return int(text)


def _read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file; none where there is no such file."""
    if not path.is_file():
        return ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    if not text.strip():
        return ()
    lines = tuple(line.strip() for line in text.rstrip().split("\n"))
    if "" in lines:
        raise ValueError(f"{path} has a blank line {lines.index('') + 1}: labels would no longer fit.")
    return lines
