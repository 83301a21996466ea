"""`clipa data index`: find the pairs of a data set once, with several processes or machines."""

import dataclasses
import os
import re
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import tyro

from .._checks import check_at_least
from ..config import WordClassBy
from ._data_files import Files, pair_counts, PairFiles, print_table


_SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class Index:
    """Build the indexes that training reads from, and count what they hold.

    Stopped and started again, it goes on with the shards that are left.
    """

    path: tyro.conf.Positional[str]
    """Image-text pairs: a folder or glob of shards, a .csv/.tsv file, or a folder of image and .txt files."""
    tokenizer: str = ""
    """Vocabulary with which to keep the tokens of all captions beside the index; see --data.tokenizer of `clipa train`.
    Empty: keep none."""
    word_class: WordClassBy = "word"
    """How the kept tokens get their classes; see --data.word-class of `clipa train`."""
    processes: int = 0
    """Processes that read; 0: one for each processor."""
    shard: str = "0/1"
    """Index part i of n of the shards, as i/n with i from 0; for several machines, or the jobs of a SLURM array."""
    files: Files = field(default_factory=PairFiles)
    """How the pairs are laid out."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Index and count."""
        check_at_least("processes", self.processes, 0)
        part = _parse_part(self.shard)
        from ..data import index_pairs, load_tokenizer

        with _Progress() as progress:
            pairs, built = index_pairs(
                dataclasses.replace(self.files.config(self.path), word_class=self.word_class),
                load_tokenizer(self.tokenizer) if self.tokenizer else None,
                processes=self.processes or _processors(),
                part=part,
                report=progress.report,
            )
        result = {**pair_counts(pairs), "shards_built": built}
        print_table("pairs", result)
        return result


def _parse_part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard is written i/n with i from 0 to n - 1, as 0/8, got {text!r}.")
    return int(found[1]), int(found[2])


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Progress:
    """A bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("shards indexed", total=None)
        self._said = time.perf_counter()

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.perf_counter()
        if self._bar.disable and (done == total or now - self._said >= _SECONDS_BETWEEN_LINES):
            self._bar.console.print(f"{done} of {total} shards indexed", highlight=False)
            self._said = now
