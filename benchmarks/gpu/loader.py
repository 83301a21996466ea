"""How many images per second does the loader read on this machine's cores, beside webdataset with torch?

The loaders of `loader_rate.py`, with as many readers as cores: JPEGs of 512 px in tars to random crops of 112 px with
token ids. No GPU is used.
"""

import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _part import Facts, Measure, Options, take_part
from _sizes_gpu import TINY_ROWS
from PIL import Image


def jpegs(count: int) -> tuple[str, list[bytes]]:
    """Photographs where scikit-image has some at hand, else clouds of noise; which of them, and the files."""
    from _photos import photo_jpegs

    try:
        return "photographs", photo_jpegs(count, size=512, quality=90)
    except (ImportError, OSError):
        rng = np.random.default_rng(0)
        files = []
        for _ in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).resize((512, 512))
            noisy = np.asarray(coarse) + rng.normal(0, 4, (512, 512, 3))
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        return "noise", files


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Write the shards, and keep their texts beside the index."""
    import loader_rate

    from clipa_eqx.config import DataConfig
    from clipa_eqx.data import keep_texts, load_tokenizer, open_pairs

    tiny = options.get("tiny")
    readers = 1 if tiny else os.cpu_count() or 1
    if tiny:
        loader_rate.BATCH = TINY_ROWS
    images = 8 * TINY_ROWS if tiny else 512 * readers
    folder = Path(tempfile.mkdtemp())
    pictures, files = jpegs(4 if tiny else 128)
    loader_rate.photo_jpegs = lambda count, **_: list(itertools.islice(itertools.cycle(files), count))
    loader_rate.write_shards(folder, 64 if tiny else 2048)
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    (folder / vocabulary).write_bytes((loader_rate.open_clip_package() / vocabulary).read_bytes())
    data = DataConfig(train=str(folder), caption_tokens=loader_rate.TOKENS)
    keep_texts(open_pairs(data), load_tokenizer(folder / vocabulary), data)
    loaders: dict[str, Callable[[], Any]] = {
        "fast": lambda: loader_rate.own_batches(folder, 112, readers, "fast", processes=False),
        "open_clip": lambda: loader_rate.open_clip_batches(folder, 112, readers),
        "fast_processes": lambda: loader_rate.own_batches(folder, 112, readers, "fast", processes=True),
        "pillow_processes": lambda: loader_rate.own_batches(folder, 112, readers, "pillow", processes=True),
    }

    def measure() -> Facts:
        found: Facts = {}
        for name in options.get("loaders", loaders):
            # One loader that cannot run here leaves the figures of the others.
            try:
                rate, per_core_s = loader_rate.rate(loaders[name](), images)
                found[name] = {"images_per_s": round(rate), "images_per_core_s": round(per_core_s)}
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(name, json.dumps(found[name]), flush=True)
        return found

    return {"readers": readers, "images": images, "pictures": pictures}, measure


if __name__ == "__main__":
    take_part(prepare)
