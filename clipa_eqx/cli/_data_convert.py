"""`clipa data convert`: pairs of any layout as tars or ArrayRecord files."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from ._data_files import Files, PairFiles, print_table


@dataclass(frozen=True)
class Convert:
    """Write pairs as tars or ArrayRecord files, which are read fast at random.

    Images, captions and metadata stay as they are. Stopped and started again, it goes on with the shards that are left.
    """

    source: tyro.conf.Positional[str]
    """Image-text pairs: a folder or glob of shards, a .csv/.tsv file, or a folder of image and .txt files."""
    out: Path
    """Folder to write into."""
    to: Literal["tar", "array-record"] = "tar"
    """tar: as img2dataset writes them; array-record: tf.train.Example with the same fields."""
    processes: int = 1
    """Processes that write, each a shard at a time."""
    pairs_per_shard: int = 10_000
    """Pairs of a shard where the source has no shards; otherwise each shard becomes one."""
    files: Files = field(default_factory=PairFiles)
    """How the pairs are laid out."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Convert, with a bar on a terminal."""
        from rich.console import Console
        from rich.progress import Progress

        from ..data import convert_pairs

        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("shards written", total=None)
            summary = convert_pairs(
                self.files.config(self.source),
                self.out,
                to=self.to,
                processes=self.processes,
                pairs_per_shard=self.pairs_per_shard,
                report=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        result = {"out": str(self.out), **asdict(summary)}
        print_table("converted", result)
        return result
