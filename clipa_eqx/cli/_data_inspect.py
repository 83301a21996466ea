"""`clipa data inspect`: look at a data set before training on it."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TYPE_CHECKING

import tyro

from .._checks import check_at_least
from ..config import DataConfig
from ._contact_sheet import make_tile, write_sheet
from ._data_files import Files, pair_counts, PairFiles, print_table, sample


if TYPE_CHECKING:
    from ..data import Pair, PairSource, Tokenizer

_TEXT_LENGTHS = (8, 16, 32, 64)
"""Text lengths of the published recipes, and one above."""
_TILES = 48
"""Pictures of a contact sheet."""


@dataclass(frozen=True)
class Inspect:
    """Look at a data set before training on it: counts, image sizes, caption lengths, broken images.

    `skipped` counts what the index leaves out, downloads that img2dataset reports as failed included; `broken` counts
    images of the sample that cannot be decoded.
    """

    path: tyro.conf.Positional[str]
    """Image-text pairs: a folder or glob of shards, a .csv/.tsv file, or a folder of image and .txt files."""
    tokenizer: str = ""
    """Vocabulary with which to count tokens; see --data.tokenizer of `clipa train`. Empty: count characters only."""
    sample: int = 1000
    """Pairs to read, evenly spread over the data; all of them when there are fewer."""
    sheet: Path | None = None
    """Also write pictures with their captions on one page, a .png or .html file."""
    files: Files = field(default_factory=PairFiles)
    """How the pairs are laid out."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Count, sample, measure."""
        check_at_least("sample", self.sample, 1)
        from ..data import load_tokenizer

        tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else None
        pairs = self.files.open(self.path)
        result = {**pair_counts(pairs), **_inspect_sample(pairs, self.sample, tokenizer)}
        if self.sheet is not None:
            tiles = [make_tile(pair, DataConfig().max_pixels) for pair in _read_sample(pairs, _TILES, Counter())]
            write_sheet(self.sheet, tiles)
            result["sheet"] = str(self.sheet)
        print_table("pairs", result)
        return result


def _read_sample(pairs: "PairSource", most: int, broken: Counter[str]) -> "Iterator[Pair]":
    """Read up to `most` pairs; count those whose image file cannot be read."""
    for place in sample(pairs, most):
        try:
            yield pairs[place]
        except OSError as error:
            broken[error.strerror or type(error).__name__] += 1


def _inspect_sample(pairs: "PairSource", most: int, tokenizer: "Tokenizer | None") -> dict[str, Any]:
    """What a sample of the pairs is like; broken images are counted by reason."""
    captions: list[str] = []
    sizes: list[tuple[int, int]] = []
    broken: Counter[str] = Counter()
    for pair in _read_sample(pairs, most, broken):
        captions += pair.captions
        try:
            sizes.append(_picture_size(pair.image))
        except ValueError as error:
            broken[re.sub(r"\d+", "N", str(error))] += 1  # "(10 bytes not processed)" is no reason of its own
    result: dict[str, Any] = {"sampled": min(most, len(pairs)), "broken": dict(broken.most_common())}
    if sizes:
        result["width"] = _spread([width for width, _ in sizes])
        result["height"] = _spread([height for _, height in sizes])
    if captions:
        result["caption_characters"] = _spread([len(caption) for caption in captions])
    if captions and tokenizer is not None:
        tokens = tokenizer.count_tokens(captions).tolist()
        result["caption_tokens"] = _spread(tokens)
        result["cut_at"] = {str(length): sum(n > length for n in tokens) / len(tokens) for length in _TEXT_LENGTHS}
    return result


def _picture_size(data: bytes) -> tuple[int, int]:
    """Stored width and height of a picture that decodes as a whole.

    Raises:
        ImageError: it does not.
    """
    from PIL import Image

    from ..data import eval_image

    eval_image(data, 1, resize="squash", interpolation="bilinear", max_pixels=DataConfig().max_pixels)
    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile and largest of some values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    places = {"min": 0, "median": last // 2, "p95": last * 95 // 100, "max": last}
    return {name: ordered[place] for name, place in places.items()}
