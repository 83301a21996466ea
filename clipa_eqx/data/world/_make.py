"""The built-in world: pictures of coloured shapes with captions, written as real data sets are."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..._checks import check_at_least, check_between
from ._classes import class_name, CLASSES, draw_unseen, TEMPLATES
from ._samples import draw_samples, SampleRange
from ._shards import write_shard


_PAIRS_PER_SHARD = 5000
_SMALLEST_IMAGE, _LARGEST_IMAGE = 32, 512


@dataclass(frozen=True)
class WorldSummary:
    """What `make_world` wrote; `world.json` of its directory holds the same."""

    pairs: int
    """Training pairs, in `train/`."""
    shards: int
    """Tars of training pairs."""
    classes: int
    """Classes of the zero-shot set, in `classification/`."""
    unseen: tuple[int, ...]
    """Classes whose shape and colour never occur together in training, in ascending order."""
    classification_images: int
    """Pictures of the zero-shot set."""
    retrieval_images: int
    """Pictures of the retrieval set, in `retrieval/`."""
    image_size: int
    """Side of every picture in pixels."""
    seed: int
    """Seed that the world was made from."""


class _Shard(NamedTuple):
    """A tar to write."""

    path: Path
    number: int
    samples: SampleRange


def make_world(
    directory: Path | str,
    *,
    pairs: int = 100_000,
    seed: int = 0,
    classification_images: int = 1200,
    retrieval_images: int = 500,
    image_size: int = 64,
    processes: int = 1,
) -> WorldSummary:
    """Make a small world of captioned pictures, on which a tiny CLIP learns in minutes on a CPU.

    A picture shows one to three of 12 shapes in 10 colours, 3 sizes and 4 textures, turned by up to 20 degrees, before
    a dark background. Captions vary in their words, leave things out and add idle words. Every fifth of the 120
    combinations of shape and colour occurs neither in the pictures nor in the captions of training: a model names it
    only if it learnt shape and colour apart.

    - `train/`: webdataset tars as img2dataset writes them, with .jpg, .txt and .json per pair. The .json also lists the
      objects that the picture shows.
    - `classification/`: the 120 combinations, in CLIP_benchmark's webdataset form; `unseen.txt` lists the indices of
      the classes that never occur in training.
    - `retrieval/`: pictures of two or three objects with 5 captions each, in the same form.
    - `world.json`: the summary. It is written last, so a directory without it is not complete.

    The same arguments give the same bytes, whatever the number of processes.

    Args:
        directory: where to write; new or empty.
        pairs: training pairs, at least 1.
        seed: 0 to 2^32 - 1; it also decides which combinations are left out.
        classification_images: at least 120, one per class; classes differ by at most one picture.
        retrieval_images: at least 1.
        image_size: side of every picture in pixels, 32 to 512.
        processes: processes that draw, at least 1. Above 1, a script must start from `if __name__ == "__main__":`.

    Raises:
        ValueError: a number out of range, or a directory that holds something.
    """
    directory = Path(directory)
    check_at_least("pairs", pairs, 1)
    check_between("seed", seed, 0, 2**32 - 1)
    check_at_least("classification_images", classification_images, len(CLASSES))
    check_at_least("retrieval_images", retrieval_images, 1)
    check_between("image_size", image_size, _SMALLEST_IMAGE, _LARGEST_IMAGE)
    check_at_least("processes", processes, 1)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} holds something already; give a new or an empty directory, or remove it first.")

    train = [
        _Shard(
            directory / "train" / f"{number:05d}.tar",
            number,
            SampleRange("train", first, min(first + _PAIRS_PER_SHARD, pairs), image_size, seed),
        )
        for number, first in enumerate(range(0, pairs, _PAIRS_PER_SHARD))
    ]
    classification = SampleRange("classification", 0, classification_images, image_size, seed)
    retrieval = SampleRange("retrieval", 0, retrieval_images, image_size, seed)
    tests = [_Shard(directory / samples.part / "test" / "0.tar", 0, samples) for samples in (classification, retrieval)]
    summary = WorldSummary(
        pairs=pairs,
        shards=len(train),
        classes=len(CLASSES),
        unseen=draw_unseen(seed),
        classification_images=classification_images,
        retrieval_images=retrieval_images,
        image_size=image_size,
        seed=seed,
    )
    _write_labels(directory, summary.unseen)
    _write_shards([*train, *tests], processes)
    _write_text(directory / "world.json", json.dumps(asdict(summary), indent=2))
    return summary


def _write_labels(directory: Path, unseen: tuple[int, ...]) -> None:
    classification, retrieval = directory / "classification", directory / "retrieval"
    _write_text(classification / "classnames.txt", *map(class_name, CLASSES))
    _write_text(classification / "zeroshot_classification_templates.txt", *TEMPLATES)
    _write_text(classification / "unseen.txt", *map(str, unseen))
    _write_text(retrieval / "dataset_type.txt", "retrieval")
    for folder in (classification, retrieval):
        _write_text(folder / "test" / "nshards.txt", "1")


def _write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_shards(shards: list[_Shard], processes: int) -> None:
    if processes == 1:
        for shard in shards:
            _write_shard(shard)
        return
    # Forking a process that runs JAX's threads can hang; spawning cannot.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(shards)), mp_context=spawn) as pool:
        list(pool.map(_write_shard, shards))


def _write_shard(shard: _Shard) -> None:
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(shard.path, draw_samples(shard.samples, shard=shard.number))
    if shard.samples.part == "train":
        count = shard.samples.end - shard.samples.first
        stats = {
            "count": count,
            "successes": count,
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "status_dict": {"success": count},
        }
        _write_text(shard.path.with_name(f"{shard.path.stem}_stats.json"), json.dumps(stats, indent=2))
