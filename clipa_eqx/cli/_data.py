"""`clipa data`: make the built-in world, train a tokenizer, inspect image-text pairs."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from .._checks import check_at_least
from ..config import DataConfig, SourceLayout


if TYPE_CHECKING:
    from ..data import Pair, PairSource, Tokenizer

_TEXT_LENGTHS = (8, 16, 32, 64)
"""Text lengths of the published recipes, and one above."""


@dataclass(frozen=True)
class PairFiles:
    """How pairs of image and caption are laid out."""

    layout: SourceLayout = "auto"
    """How the path is laid out; auto looks."""
    csv_separator: str = ","
    """Field separator of a .csv file; .tsv files always use a tab."""
    csv_image: str = "filepath"
    """Column of the image path, relative to the file's folder."""
    csv_caption: str = "title"
    """Column of the caption."""

    def open(self, path: str) -> "PairSource":
        """Index the pairs at `path` where that is not done, and open them."""
        from ..data import open_pairs

        return open_pairs(self.config(path))

    def config(self, path: str) -> DataConfig:
        """What the data package is told of the pairs at `path`."""
        return DataConfig(
            train=path,
            layout=self.layout,
            csv_separator=self.csv_separator,
            csv_image=self.csv_image,
            csv_caption=self.csv_caption,
        )


Files = Annotated[PairFiles, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class MakeWorld:
    """Make the built-in world: pictures of coloured shapes with captions, a zero-shot set and a retrieval set."""

    directory: tyro.conf.Positional[Path]
    """Where to write; a new or empty folder."""
    pairs: int = 100_000
    """Training pairs, in train/ as webdataset tars."""
    seed: int = 0
    """The same seed and sizes give the same bytes."""
    classification_images: int = 1200
    """Pictures of the zero-shot set, in classification/; at least 120, one per class."""
    retrieval_images: int = 500
    """Pictures of the retrieval set, in retrieval/."""
    image_size: int = 64
    """Side of every picture in pixels, 32 to 512."""
    processes: int = 1
    """Processes that draw."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Draw and write the world."""
        from ..data.world import make_world

        summary = make_world(
            self.directory,
            pairs=self.pairs,
            seed=self.seed,
            classification_images=self.classification_images,
            retrieval_images=self.retrieval_images,
            image_size=self.image_size,
            processes=self.processes,
        )
        result = {"directory": str(self.directory), **asdict(summary)}
        print_table("world", {**result, "unseen": len(summary.unseen)})
        return result


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a lower-cased WordPiece vocabulary on the captions of a data set."""

    data: str
    """Image-text pairs: a folder or glob of webdataset tars, a .csv/.tsv file, or a folder of image and .txt files."""
    out: Path
    """Folder for tokenizer.json and clipa_tokenizer.json; give it as --data.tokenizer to `clipa train`."""
    vocab_size: int = 32000
    """Most entries, special tokens and single characters included."""
    captions: int = 1_000_000
    """Pairs whose captions to learn from, evenly spread over the data; all of them when there are fewer."""
    files: Files = field(default_factory=PairFiles)
    """How the pairs are laid out."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Read captions, train, save."""
        check_at_least("captions", self.captions, 1)
        from ..data import train_tokenizer

        pairs = self.files.open(self.data)
        captions = [caption for place in _sample(pairs, self.captions) for caption in pairs.captions(place)]
        tokenizer = train_tokenizer(captions, vocab_size=self.vocab_size)
        tokenizer.save(self.out)
        result = {
            "tokenizer": str(self.out),
            "vocab_size": tokenizer.vocab_size,
            "captions": len(captions),
        }
        print_table("tokenizer", result)
        return result


@dataclass(frozen=True)
class Inspect:
    """Look at a data set before training on it: counts, image sizes, caption lengths, broken images."""

    path: tyro.conf.Positional[str]
    """Image-text pairs: a folder or glob of webdataset tars, a .csv/.tsv file, or a folder of image and .txt files."""
    tokenizer: str = ""
    """Vocabulary with which to count tokens; see --data.tokenizer of `clipa train`. Empty: count characters only."""
    sample: int = 1000
    """Pairs to read, evenly spread over the data; all of them when there are fewer."""
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
        print_table("pairs", result)
        return result


def _sample(pairs: "PairSource", most: int) -> Iterator[int]:
    """Up to `most` places, evenly spread over the source."""
    count = min(most, len(pairs))
    return (place * len(pairs) // count for place in range(count))


def _read_sample(pairs: "PairSource", most: int, broken: Counter[str]) -> "Iterator[Pair]":
    """Read up to `most` pairs; count those whose image file cannot be read."""
    for place in _sample(pairs, most):
        try:
            yield pairs[place]
        except OSError as error:
            broken[error.strerror or type(error).__name__] += 1


def pair_counts(pairs: "PairSource") -> dict[str, Any]:
    """Pairs, and what was left out by reason."""
    return {"pairs": len(pairs), "skipped": dict(pairs.skipped)}


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


def print_table(title: str, result: dict[str, Any]) -> None:
    """Print a result for people: a row per value, nested values in one row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {_readable(item)}" for key, item in value.items()) or "none"
        table.add_row(name.replace("_", " "), _readable(value))
    Console().print(table)


def _readable(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
