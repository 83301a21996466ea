"""Captioned images that lie as single files, listed in a CSV file or side by side in a folder."""

import array
import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ._pair import Pair
from .formats._captions import CAPTIONS, read_texts, TextError, usable_captions
from .formats._fields import FieldError, PairFields
from .formats._img2dataset import is_stats, read_stats
from .formats._pairing import IMAGE_EXTENSIONS, pair_by_name
from .index._shards import check_index, describe_counts


class FilePairs:
    """Pairs whose images are files, with all captions in memory as one block of bytes."""

    def __init__(self, root: Path, rows: Iterator[tuple[str, tuple[str, ...]]], skipped: Counter[str]) -> None:
        """Take in rows.

        Args:
            root: the folder to which paths are relative.
            rows: path of the image and captions.
            skipped: what `rows` left out, complete once it is exhausted.
        """
        text, ends = bytearray(), array.array("Q")
        for path, captions in rows:
            for field in (path, json.dumps(captions, ensure_ascii=False)):
                text += field.encode("utf-8", "surrogateescape")
                ends.append(len(text))
        self._root, self._text = root, bytes(text)
        self._ends = np.frombuffer(ends, np.uint64) if ends else np.zeros(0, np.uint64)
        self.skipped = dict(sorted(skipped.items()))
        # Over paths and captions; not over the pixels, nor where the folder lies.
        self.fingerprint = hashlib.sha256(self._ends.tobytes() + self._text).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._ends) // 2

    def __getitem__(self, index: int) -> Pair:
        path, captions = self._row(index)
        return Pair(path, (self._root / path).read_bytes(), captions)

    def key(self, index: int) -> str:
        """Path of the image, below the folder."""
        return self._row(index)[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone."""
        return self._row(index)[1]

    def _row(self, index: int) -> tuple[str, tuple[str, ...]]:
        first = 2 * check_index(index, len(self))
        start = int(self._ends[first - 1]) if first else 0
        middle, end = (int(place) for place in self._ends[first : first + 2])
        path = self._text[start:middle].decode("utf-8", "surrogateescape")
        return path, tuple(json.loads(self._text[middle:end]))


def open_csv(path: Path, *, separator: str, fields: PairFields) -> FilePairs:
    """Captioned images listed in a CSV file with a header line.

    Args:
        path: the file; names of images in it are relative to its folder.
        separator: between fields; a .tsv file has tabs whatever is said.
        fields: columns of image path and captions; where they are empty, open_clip's `filepath` and `title`, or other
            usual names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, the file is not CSV, or no row can be used.
    """
    skipped: Counter[str] = Counter()
    separator = "\t" if path.suffix.lower() == ".tsv" else separator
    # Bytes that are not UTF-8 become lone surrogates, which tell the faulty row from the others.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=separator)
        try:
            header = next(reader, [])
            try:
                found = fields.find(header)
            except FieldError as error:
                raise ValueError(
                    f"{path} has {error}, which its first line, split at {separator!r}, names: set image_field, "
                    "caption_field and csv_separator to fit."
                ) from error
            places = [header.index(name) for name in (found.image, *found.captions)]
            pairs = FilePairs(path.parent, _read_rows(reader, places, skipped), skipped)
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num} is not CSV: {error}.") from error
    if not len(pairs):
        raise ValueError(f"{path} lists no image with a caption ({describe_counts(pairs.skipped)}).")
    return pairs


def _read_rows(
    reader: Iterator[list[str]], places: Sequence[int], skipped: Counter[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for row in reader:
        if not row:
            continue
        if len(row) <= max(places):
            skipped["row with too few fields"] += 1
            continue
        name, *texts = (row[place] for place in places)
        try:
            captions = usable_captions(texts)
        except TextError as error:
            skipped[str(error)] += 1
            continue
        if not name:
            skipped["caption without image"] += 1
        elif "\0" in name:
            skipped["name that no file can have"] += 1
        else:
            yield name, captions


def open_folder(path: Path) -> FilePairs:
    """Captioned images of a folder and the folders in it: each image beside a text file of the same name.

    Raises:
        ValueError: no image has a caption.
    """
    skipped: Counter[str] = Counter()
    pairs = FilePairs(path, _read_captions(path, skipped), skipped)
    if not len(pairs):
        raise ValueError(
            f"{path} holds no shard, and no image with a caption of the same name ({describe_counts(pairs.skipped)}); "
            f"needed are files such as 000.jpg and 000.txt."
        )
    return pairs


def _read_captions(folder: Path, skipped: Counter[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    files: list[tuple[bytes, str]] = []
    for name in list_files(folder):
        if is_stats(folder / name):
            read_stats(folder / name, skipped)
        else:
            files.append((os.fsencode(name), name))
    for pair in pair_by_name(files, CAPTIONS, skipped):
        texts = {extension: (folder / name).read_bytes() for extension, name in pair.texts.items()}
        try:
            yield pair.image, read_texts(texts, CAPTIONS)[0]
        except TextError as error:
            skipped[str(error)] += 1


def list_files(folder: Path) -> Iterator[str]:
    """Paths of all files in a folder and the folders in it, relative to it and sorted; hidden ones are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)


def is_image(name: str) -> bool:
    """Whether a file name ends as images do."""
    return os.fsencode(name).lower().rpartition(b".")[2] in IMAGE_EXTENSIONS
