"""Does reading 100,000 batches make a process grow or leave files open?

Batches of 4 pictures of 16 px out of 40 shards, with kept texts, read by two threads and then by two reader processes.
Resident memory (of the readers too) and open files are looked at 100 times; the slope is a least-squares line through
the last three quarters, after the caches of NumPy and of the allocator have filled. Appends one JSON line per kind of
reader to results/loader_leak.json.

    pip install psutil
    python benchmarks/loader_leak.py [batches]
"""

import contextlib
import importlib
import io
import json
import platform
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipa_eqx.config import DataConfig, StageConfig
from clipa_eqx.data import keep_texts, open_pairs, open_texts, train_tokenizer, training_batches


LOOKS, BATCH, SHARDS, PAIRS = 100, 4, 40, 25


def write_shards(folder: Path) -> None:
    """Small JPEGs with captions; every seventh is broken."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(PAIRS):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "JPEG")
                picture = file.getvalue()[: -200 if number % 7 == 0 else None]
                for end, content in (("jpg", picture), ("txt", f"a small picture {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def look() -> tuple[float, int]:
    """Resident megabytes and open files of this process and its readers."""
    this = importlib.import_module("psutil").Process()
    family = [this, *this.children(recursive=True)]
    return sum(one.memory_info().rss for one in family) / 1e6, sum(one.num_fds() for one in family)


def measure(folder: Path, count: int, processes: int) -> dict[str, Any]:
    """Read so many batches and see what grows."""
    data = DataConfig(train=str(folder), caption_tokens=16, processes=processes)
    pairs = open_pairs(data)
    tokenizer = train_tokenizer(("a small picture 0123456789",) * 9, vocab_size=64)
    keep_texts(pairs, tokenizer, data)
    stage = StageConfig(batch_size=BATCH, image_size=16)
    seen = []
    start = time.perf_counter()
    with contextlib.closing(
        training_batches(pairs, open_texts(pairs, tokenizer, data), data, stage, seed=0)
    ) as batches:
        for number in range(count):
            next(batches)
            if (number + 1) % (count // LOOKS) == 0:
                seen.append((number + 1, *look()))
    settled = np.array(seen[LOOKS // 4 :], float).T
    return {
        "readers": "processes" if processes else "threads",
        "batches": count,
        "seconds": round(time.perf_counter() - start),
        "mb": [round(seen[0][1], 1), round(seen[LOOKS // 4][1], 1), round(seen[-1][1], 1)],
        "files": [seen[0][2], seen[-1][2]],
        "bytes_per_batch": round(1e6 * np.polyfit(settled[0], settled[1], 1)[0], 2),
        "files_per_1000_batches": round(1000 * np.polyfit(settled[0], settled[2], 1)[0], 4),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure threads, then processes; the number of batches may stand on the command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name))
        for processes in (0, 2):
            record = measure(Path(name), count, processes)
            print(json.dumps(record))
            with (Path(__file__).parent / "results" / "loader_leak.json").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
