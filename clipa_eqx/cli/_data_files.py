"""What the commands of `clipa data` share: how pairs are laid out, samples of them, tables of results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from ..config import DataConfig, SourceLayout


if TYPE_CHECKING:
    from ..data import PairSource


@dataclass(frozen=True)
class PairFiles:
    """How pairs of image and caption are laid out."""

    layout: SourceLayout = "auto"
    """How the path is laid out; auto looks."""
    csv_separator: str = ","
    """Field separator of a .csv file; .tsv files always use a tab."""
    image_field: str = ""
    """Column or feature of the image; empty: the first usual name that is there, such as jpg, image or filepath."""
    caption_field: str = ""
    """Column or feature of the caption, or several with commas between; empty: the first usual name, such as txt."""

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
            image_field=self.image_field,
            caption_field=self.caption_field,
        )


Files = Annotated[PairFiles, tyro.conf.arg(name="")]


def sample(pairs: "PairSource", most: int) -> Iterator[int]:
    """Up to `most` places, evenly spread over the source."""
    count = min(most, len(pairs))
    return (place * len(pairs) // count for place in range(count))


def pair_counts(pairs: "PairSource") -> dict[str, Any]:
    """Pairs, and what was left out by reason."""
    return {"pairs": len(pairs), "skipped": dict(pairs.skipped)}


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
