"""What img2dataset writes beside its shards: how many downloads failed, and why."""

import json
from collections import Counter
from pathlib import Path

from ..io._remote import RemoteFile
from ._fields import describe_failure


STATS = "_stats.json"
_LARGEST_STATS = 1 << 20


def count_failures(shard: Path | RemoteFile, skipped: Counter[str]) -> None:
    """Count the failed downloads that `00000_stats.json` lists beside the shard `00000.*`, where there is one.

    Over a network it is not looked for.
    """
    if isinstance(shard, Path):
        read_stats(shard.with_name(shard.name.partition(".")[0] + STATS), skipped)


def read_stats(path: Path, skipped: Counter[str]) -> None:
    """Count the failed downloads that a statistics file lists; nothing if it is missing or another kind of file."""
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_LARGEST_STATS))
        statuses = {str(reason): int(count) for reason, count in fields["status_dict"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    for reason, count in statuses.items():
        if reason != "success" and count > 0:
            skipped[describe_failure(reason)] += count


def is_stats(path: Path) -> bool:
    """Whether a file is a shard's statistics and not a text: the shard's table stands beside it."""
    return path.name.endswith(STATS) and path.with_name(path.name.removesuffix(STATS) + ".parquet").exists()
