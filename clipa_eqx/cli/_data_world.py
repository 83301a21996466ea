"""`clipa data make-world`: pictures of coloured shapes, with which everything can be tried."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from ._data_files import print_table


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
