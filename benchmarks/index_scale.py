"""How long until the first batch, and how much memory, with 10,000 shards of 10,000 pairs each?

One real tar is made and indexed; the other shards are hard links to it, under names of their own. Of the index and of
the kept tokens, too, there are only some files on disk (`--files`), each under many names: the reader opens, reads and
holds what it would of as many different files, and only the disk is spared. `--files 10000` writes them all, 22 GB.

Each case is a process of its own that imports the training loop, opens the set and takes one batch. `start_s` runs from
the start of the process to that batch. cold: the pages of all index files and of the tar were dropped before. Cases:

- whole: all pairs. filter: two scores and a size, judged for every pair; filter_again: the same, from the kept result.
- unique: each link once, so pairs are compared with each other; unique_again: from the kept result.
- mixture: both halves of the shards, 3 to 1.
- index: `clipa data index` over the whole set, of which 20 shards have lost their index; memory of its largest process.

Prints tables and appends one JSON line to results/index_scale.json.

    python benchmarks/index_scale.py [--shards 10000] [--files 100] [--folder /tmp]
"""

import argparse
import importlib
import io
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipa_eqx.config import DataConfig, FilterConfig, StageConfig
from clipa_eqx.data import keep_texts, load_tokenizer, open_pairs, open_texts, train_tokenizer, training_batches


PAIRS = 10_000
UNINDEXED = 20
FILTER = FilterConfig(min_side=64, max_aspect=3.0, where=("similarity>=0.28", "punsafe<0.5"))
CASES = ("whole", "filter", "filter_again", "unique", "unique_again", "mixture")
PREFIX = struct.Struct("<8sII")


def members(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Pairs as img2dataset writes them, with scores; captions of ten words."""
    words = [f"word{number}" for number in range(500)]
    pictures = []
    for _ in range(16):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (72, 96, 3), np.uint8)).save(file, "JPEG", quality=60)
        pictures.append(file.getvalue())
    for number in range(PAIRS):
        caption = " ".join(words[place] for place in rng.integers(0, len(words), 10))
        fields = {
            "caption": caption,
            "url": f"https://images.example.org/{number % (PAIRS // 2)}/picture.jpg",
            "key": f"{number:09d}",
            "status": "success",
            "width": 96,
            "height": 72,
            "original_width": 1024,
            "original_height": 768,
            "similarity": round(float(rng.uniform(0.2, 0.4)), 4),
            "punsafe": round(float(rng.uniform(0, 0.6)), 4),
            "LANGUAGE": "en" if number % 3 else "de",
            "sha256": f"{number:064x}",
        }
        yield f"{number:09d}.jpg", pictures[number % len(pictures)]
        yield f"{number:09d}.txt", caption.encode()
        yield f"{number:09d}.json", json.dumps(fields).encode()


def make_set(folder: Path, shards: int, files: int) -> dict[str, Any]:
    """The tar, its index, and both under all other names; returns where the bytes of a row go."""
    folder.mkdir(parents=True)
    first = folder / "00000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members(np.random.default_rng(0)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = DataConfig(train=str(first))
    pairs = open_pairs(data)
    tokenizer = train_tokenizer([pairs.captions(place)[0] for place in range(PAIRS)], vocab_size=2000)
    tokenizer.save(folder / "vocabulary")
    keep_texts(pairs, tokenizer, data)
    index, texts = sorted((folder / ".clipa_index").iterdir())
    for path in (index, texts):
        content = path.read_bytes()
        for shard in range(1, shards):
            other = path.with_name(path.name.replace("00000", f"{shard:05d}", 1))
            if shard < files:
                other.write_bytes(content)
            else:
                os.link(path.with_name(path.name.replace("00000", f"{shard % files:05d}", 1)), other)
    for shard in range(1, shards):
        os.link(first, folder / f"{shard:05d}.tar")
    os.sync()
    return bytes_per_row(index.read_bytes()) | {"kept_tokens": round(texts.stat().st_size / PAIRS, 1)}


def bytes_per_row(index: bytes) -> dict[str, Any]:
    """What a row takes on disk, by part of the index file."""
    _, size, _ = PREFIX.unpack_from(index)
    header = json.loads(index[PREFIX.size : PREFIX.size + size])
    starts = sorted([*(column["offset"] for column in header["columns"].values()), header["end"]])
    columns = {
        name: round(starts[starts.index(column["offset"]) + 1] / PAIRS - column["offset"] / PAIRS, 1)
        for name, column in header["columns"].items()
    }
    return {
        "record": header["texts_offset"] / PAIRS,
        "key_and_caption": round((starts[0] - header["texts_offset"]) / PAIRS, 1),
        **columns,
        "header": round((PREFIX.size + size) / PAIRS, 1),
        "all": round(len(index) / PAIRS, 1),
    }


def first_batch(case: str, folder: Path, shards: int, started: float) -> dict[str, Any]:
    """Open the set and take a batch, in this process; times since `started`."""
    importlib.import_module("clipa_eqx.train")  # what a training process has in memory
    imported = time.time()
    filters = {"filter": FILTER, "unique": FilterConfig(unique=("url",))}
    last, middle = shards - 1, shards // 2
    data = (
        DataConfig(
            mixture=(f"{folder}/{{00000..{middle - 1:05d}}}.tar", f"{folder}/{{{middle:05d}..{last:05d}}}.tar"),
            mixture_weights=(3.0, 1.0),
        )
        if case == "mixture"
        else DataConfig(train=str(folder), filter=filters.get(case.removesuffix("_again"), FilterConfig()))
    )
    pairs = open_pairs(data)
    opened = time.time()
    tokenizer = load_tokenizer(str(folder / "vocabulary"))
    stage = StageConfig(batch_size=256, image_size=64)
    batches = training_batches(pairs, open_texts(pairs, tokenizer, data), data, stage, seed=0)
    next(batches)
    ended = time.time()
    batches.close()
    return {
        "start_s": round(ended - started, 2),
        "import_s": round(imported - started, 2),
        "open_s": round(opened - imported, 2),
        "batch_s": round(ended - opened, 2),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "pairs": len(pairs),
    }


def drop_pages(folder: Path, files: int) -> None:
    """Make the next reader of the index and of the tar go to the disk."""
    for path in [folder / "00000.tar", *sorted((folder / ".clipa_index").iterdir())[: 2 * files]]:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run_case(arguments: list[str]) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--started", str(time.time())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run_index(folder: Path, shards: int) -> dict[str, Any]:
    """`clipa data index` over a set of which some shards have no index."""
    for shard in range(shards - UNINDEXED, shards):
        for path in (folder / ".clipa_index").glob(f"{shard:05d}.tar.*"):
            path.unlink()
    began = time.time()
    command = [sys.executable, "-m", "clipa_eqx", "data", "index", str(folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read() if process.stdout else ""
        # Unlike `wait` this tells the memory of the largest process, be it the command or one of its readers.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"clipa data index ended with exit code {process.returncode}.")
    return {
        "seconds": round(time.time() - began, 1),
        "shards_built": json.loads(output.splitlines()[-1])["shards_built"],
        "memory_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Make the set, run every case, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(first_batch(options.case, options.folder, options.shards, options.started)))
        return
    root = Path(tempfile.mkdtemp(dir=options.folder))
    os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "JAX_PLATFORMS": "cpu"}
    try:
        folder = root / "set"
        rows = make_set(folder, options.shards, options.files)
        arguments = ["--folder", str(folder), "--shards", str(options.shards), "--case"]
        results = {}
        for case in CASES:
            results[case] = run_case([*arguments, case])
        for case in ("whole", "filter_again"):
            drop_pages(folder, options.files)
            results[f"{case}_cold"] = run_case([*arguments, case])
        results["index"] = run_index(folder, options.shards)
    finally:
        shutil.rmtree(root)
    record = {
        "shards": options.shards,
        "pairs": options.shards * PAIRS,
        "index_files": options.files,
        "bytes_per_row": rows,
        "cases": results,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    target = Path(__file__).parent / "results" / "index_scale.json"
    with target.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    print(f"{options.shards} shards, {record['pairs']:,} pairs")
    for case, result in results.items():
        print(f"  {case:18}", "  ".join(f"{name} {value:g}" for name, value in result.items()))
    print("bytes per row: " + ", ".join(f"{name} {value:g}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
