"""Captioned images of any layout to tars or ArrayRecord files, which are read fast at random."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._checks import check_at_least, check_choice
from ..config import DataConfig
from ._convert_files import WRITERS, WrittenPair
from ._layouts import find_layout_shards
from ._pair import PairSource
from ._sources import open_pairs
from .formats._format import ScannedPair, ShardFormat
from .io._reading import stamp_file
from .io._remote import RemoteFile


ConvertTo = Literal["tar", "array-record"]

_PROGRESS = ".clipa_convert"
"""Folder of what was done, one file per finished shard."""


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion wrote."""

    pairs: int
    skipped: dict[str, int]
    """What was left out, by reason."""
    shards: int
    """Files written, earlier runs included."""
    shards_kept: int
    """Of them, those that an earlier run had finished."""


def convert_pairs(
    config: DataConfig,
    out: Path,
    *,
    to: ConvertTo,
    processes: int = 1,
    pairs_per_shard: int = 10_000,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ConvertSummary:
    """Write the pairs that a config names as tars or ArrayRecord files, images as they are.

    Each shard of the source becomes one; captions stay, and so does metadata that is a number or a short text. Started
    again after a stop, or after some of the source changed, it writes only what is missing.

    Args:
        config: where the pairs are.
        out: folder to write into.
        to: tar, as img2dataset writes it, or array-record with the same fields in `tf.train.Example`.
        processes: how many write at once, at least 1.
        pairs_per_shard: pairs of a shard where the source has none, at least 1.
        report: called with the shards done and the shards to do.

    Raises:
        FileNotFoundError: nothing lies at the path.
        ValueError: the path holds no pair.
        OSError: it cannot be read, or `out` not written.
    """
    check_choice("to", to, ConvertTo)
    check_at_least("processes", processes, 1)
    check_at_least("pairs_per_shard", pairs_per_shard, 1)
    parts = _split(config, pairs_per_shard)
    (out / _PROGRESS).mkdir(parents=True, exist_ok=True)
    jobs = [_Job(part, out / f"{number:05d}.{WRITERS[to].extension}", to) for number, part in enumerate(parts)]
    done = [job.finished() for job in jobs]
    waiting = [job for job, result in zip(jobs, done, strict=True) if result is None]
    kept = len(jobs) - len(waiting)
    results = [result for result in done if result is not None]
    report(kept, len(jobs))
    for result in _run_all(waiting, processes):
        results.append(result)
        report(len(results), len(jobs))
    skipped: Counter[str] = Counter()
    for result in results:
        skipped.update(result["skipped"])
    pairs = sum(result["pairs"] for result in results)
    return ConvertSummary(pairs, dict(sorted(skipped.items())), len(jobs), kept)


@dataclass(frozen=True)
class _ShardPart:
    """A shard of the source."""

    path: Path | RemoteFile
    format: ShardFormat

    def state(self) -> str:
        """Changes when the pairs do."""
        stamp = stamp_file(self.path)
        place = self.path.absolute() if isinstance(self.path, Path) else self.path
        return f"{place} {self.format.name} {stamp.size} {stamp.version}"

    def pairs(self, skipped: Counter[str]) -> Iterator[WrittenPair]:
        """Scanned anew: the index leaves out metadata that nobody filters by."""
        stamp = stamp_file(self.path)
        for pair in self.format.scan(stamp, skipped):
            image = self.format.read_image(stamp, pair.place, pair.size)
            yield WrittenPair(pair.key, image, pair.captions, _described(pair))


@dataclass(frozen=True)
class _RangePart:
    """Some pairs of a source without shards."""

    source: PairSource
    first: int
    end: int

    def state(self) -> str:
        """Changes when the pairs do."""
        return f"{self.source.fingerprint} {self.first} {self.end}"

    def pairs(self, skipped: Counter[str]) -> Iterator[WrittenPair]:
        """The pairs whose files can be read."""
        if self.first == 0:
            skipped.update(self.source.skipped)
        for index in range(self.first, self.end):
            try:
                pair = self.source[index]
            except OSError as error:
                skipped[error.strerror or type(error).__name__] += 1
                continue
            yield WrittenPair(pair.key, pair.image, pair.captions, {})


@dataclass(frozen=True)
class _Job:
    """A part of the source and the file that it becomes."""

    part: _ShardPart | _RangePart
    path: Path
    to: ConvertTo

    @property
    def note(self) -> Path:
        """Where it is written down that the file is whole."""
        return self.path.parent / _PROGRESS / f"{self.path.name}.json"

    def finished(self) -> dict[str, Any] | None:
        """What an earlier run noted; None when there is no such file, or the source has changed since."""
        try:
            noted = json.loads(self.note.read_bytes())
            size = self.path.stat().st_size
        except (OSError, ValueError):
            return None
        return noted if (noted["state"], noted["size"]) == (self.part.state(), size) else None

    def run(self) -> dict[str, Any]:
        """Write the file as a whole, then the note."""
        skipped: Counter[str] = Counter()
        written = 0

        def pairs() -> Iterator[WrittenPair]:
            nonlocal written
            for pair in self.part.pairs(skipped):
                written += 1
                yield pair

        state, unfinished = self.part.state(), self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            WRITERS[self.to].write(unfinished, pairs())
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)
        result = {"state": state, "size": self.path.stat().st_size, "pairs": written, "skipped": dict(skipped)}
        self.note.write_text(json.dumps(result))
        return result


def _split(config: DataConfig, pairs_per_shard: int) -> list[_ShardPart | _RangePart]:
    found = find_layout_shards(config.train, config) if config.train else None
    if found is not None:
        shards, format = found
        return [_ShardPart(shard, format) for shard in shards]
    source = open_pairs(config)
    firsts = range(0, len(source), pairs_per_shard)
    return [_RangePart(source, first, min(first + pairs_per_shard, len(source))) for first in firsts]


def _run_all(jobs: list[_Job], processes: int) -> Iterator[dict[str, Any]]:
    """Results as they come. On the first error no further job is begun."""
    if processes == 1 or len(jobs) < 2:
        yield from map(_Job.run, jobs)
        return
    # A forked child would inherit the locks of whatever threads the caller has.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=spawning) as pool:
        futures = [pool.submit(job.run) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _described(pair: ScannedPair) -> Mapping[str, float | str]:
    sizes = {"width": float(pair.width), "height": float(pair.height)} if pair.width else {}
    return {**sizes, **pair.metadata}
