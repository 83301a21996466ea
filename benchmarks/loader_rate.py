"""How many images a second reach the training loop, beside open_clip's loader on the same shards?

Shards of 512-px photographs (JPEG, quality 90) with captions, out of the page cache; a random crop of 0.4 to 1 of the
area is resized to 112 or 64 px; token ids included. In every round each of these is started anew, warmed up, and timed
in its steady state, in turn:

- open_clip: webdataset and torch's DataLoader with as many worker processes as readers below, put together as
  open_clip_train/data.py does, with its tokenizer; its transform (crop, bicubic resize, float, normalise) is written
  out because torchvision's wheels need not fit a CPU build of torch.
- fast, pillow: the library with each decoder, bicubic too, texts kept beside the index; threads.
- fast_processes, pillow_processes: the same with reader processes.
- bare_fast, bare_pillow: decoding and resizing in a loop on as many threads, files in memory, nothing else.

`per_core` is images per second of the clock and reader. `per_core_s` is images per second of processor time over all
processes, which a busy machine hardly changes. Stage shares come from one thread that does what a reader does, with a
clock around each stage. Appends one JSON line per size to results/loader_rate.json.

    pip install -e ".[fast]" webdataset torch open_clip_torch psutil scikit-image scikit-learn
    python benchmarks/loader_rate.py [--rounds 5] [--images 2048] [--readers 2]
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import platform
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from _photos import photo_jpegs
from PIL import Image, ImageFile

from clipa_eqx.config import AugmentConfig, DataConfig, Decoder, StageConfig
from clipa_eqx.data import (
    Caption,
    draw_crop,
    DRAWS,
    keep_texts,
    load_tokenizer,
    open_pairs,
    open_texts,
    training_batches,
    training_image,
)


BATCH, TOKENS, SHARDS = 128, 32, 8
AUGMENT = AugmentConfig(interpolation="bicubic")
WORDS = ["a", "photo", "of", "the", "small", "old", "red", "house", "with", "trees", "near", "water", "at", "night"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def write_shards(folder: Path, count: int) -> None:
    """Tars as img2dataset writes them."""
    rng = np.random.default_rng(0)
    files = photo_jpegs(count, size=512, quality=90)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                caption = " ".join(rng.choice(WORDS, rng.integers(6, 20)))
                meta = json.dumps({"caption": caption, "width": 512, "height": 512})
                for end, content in (("jpg", files[number]), ("txt", caption.encode()), ("json", meta.encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def open_clip_package() -> Path:
    """Where open_clip lies; importing it would need torchvision."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ImportError("pip install open_clip_torch, whose tokenizer and vocabulary are measured.")
    return Path(spec.origin).parent


class OpenClipTransform:
    """torchvision's RandomResizedCrop, ToTensor and Normalize on a PIL image, as open_clip puts them together."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        torch = importlib.import_module("torch")
        box = draw_box(image.width, image.height)
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def draw_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop."""
    box = draw_crop(width, height, AUGMENT, np.random.random(DRAWS).tolist())
    return box.left, box.top, box.left + box.width, box.top + box.height


class OpenClipTokens:
    """open_clip's own tokenizer, loaded from its file."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def __call__(self, text: str) -> Any:
        if self._tokenizer is None:
            spec = importlib.util.spec_from_file_location("open_clip_tokenizer", open_clip_package() / "tokenizer.py")
            if spec is None or spec.loader is None:
                raise ImportError("open_clip has no tokenizer.py.")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._tokenizer = module.SimpleTokenizer(context_length=TOKENS)
        return self._tokenizer(text)[0]


@contextlib.contextmanager
def open_clip_batches(folder: Path, size: int, readers: int) -> Iterator[Iterator[Any]]:
    """Endless batches of webdataset and torch."""
    # Installed for this benchmark alone; the type checker does not look for it.
    wds = importlib.import_module("webdataset")
    pipeline = wds.DataPipeline(
        wds.ResampledShards([str(path) for path in sorted(folder.glob("*.tar"))]),
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=5000, initial=1000),
        wds.select(has_caption_and_image),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=OpenClipTransform(size), text=OpenClipTokens()),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    iterator = iter(wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=readers))
    try:
        yield iterator
    finally:
        del iterator


def has_caption_and_image(sample: dict[str, Any]) -> bool:
    """open_clip's filter."""
    return "txt" in sample and any(name in sample for name in ("png", "jpg", "jpeg", "webp"))


@contextlib.contextmanager
def own_batches(folder: Path, size: int, readers: int, decoder: Decoder, *, processes: bool) -> Iterator[Iterator[Any]]:
    """Endless batches of the library."""
    data = DataConfig(
        train=str(folder),
        caption_tokens=TOKENS,
        decoder=decoder,
        threads=readers,
        processes=readers if processes else 0,
    )
    pairs = open_pairs(data)
    texts = open_texts(pairs, load_tokenizer(folder / "bpe_simple_vocab_16e6.txt.gz"), data)
    stage = StageConfig(batch_size=BATCH, image_size=size, augment=AUGMENT)
    with contextlib.closing(training_batches(pairs, texts, data, stage, seed=0)) as batches:
        yield batches


@contextlib.contextmanager
def bare_loop(folder: Path, size: int, readers: int, decoder: Decoder) -> Iterator[Iterator[None]]:
    """Batches that nobody keeps, decoded by threads out of memory; each step is one batch's worth of work."""
    pairs = open_pairs(DataConfig(train=str(folder)))
    files = [pairs[index].image for index in range(len(pairs))]
    draws = np.random.default_rng(0).random((len(files), DRAWS)).tolist()

    def decode(numbers: range) -> None:
        for number in numbers:
            place = number % len(files)
            training_image(files[place], size, AUGMENT, draws=draws[place], max_pixels=10**8, decoder=decoder)

    def steps() -> Iterator[None]:
        # One step stands for `readers` batches, so that threads start seldom.
        for step in itertools.count():
            first = step * readers * BATCH
            threads = [
                threading.Thread(target=decode, args=(range(first + reader * BATCH, first + (reader + 1) * BATCH),))
                for reader in range(readers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            yield from itertools.repeat(None, readers)

    yield steps()


def processor_seconds() -> float:
    """Processor time of this process and its living readers so far."""
    this = importlib.import_module("psutil").Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def rate(opened: contextlib.AbstractContextManager[Iterator[Any]], images: int) -> tuple[float, float]:
    """Images per second of the clock and of the processor in the steady state; what was read ahead is used up first."""
    with opened as batches:
        for _ in range(8):
            next(batches)
        start, start_processor = time.perf_counter(), processor_seconds()
        for _ in range(images // BATCH):
            next(batches)
        count = images // BATCH * BATCH
        return count / (time.perf_counter() - start), count / (processor_seconds() - start_processor)


class Clock:
    """Adds up the time spent inside a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - start


def stage_shares(folder: Path, size: int, decoder: Decoder) -> dict[str, float]:
    """What part of a reader's time each stage takes, in one thread."""
    data = DataConfig(train=str(folder), caption_tokens=TOKENS)
    pairs = open_pairs(data)
    texts = open_texts(pairs, load_tokenizer(folder / "bpe_simple_vocab_16e6.txt.gz"), data)
    rows = np.random.default_rng(0).permutation(len(pairs))[: 4 * BATCH].tolist()
    draws = np.random.default_rng(0).random((len(pairs), DRAWS)).tolist()
    owner: Any = simplejpeg if decoder == "fast" else ImageFile.ImageFile
    name = "decode_jpeg" if decoder == "fast" else "load"
    original = getattr(owner, name)
    decode, image = Clock(original), Clock(training_image)
    read, tokenize, assemble = (
        Clock(pairs.__getitem__),
        Clock(texts.read),
        Clock(lambda target, value: target.__setitem__(..., value)),
    )
    setattr(owner, name, decode if decoder == "fast" else lambda self: decode(self))
    try:
        for first in range(0, len(rows), BATCH):
            pixels, captions = np.empty((BATCH, size, size, 3), np.uint8), []
            for place, row in enumerate(rows[first : first + BATCH]):
                pair = read(row)
                found = image(pair.image, size, AUGMENT, draws=draws[row], max_pixels=10**8, decoder=decoder)
                assemble(pixels[place], found)
                captions.append(Caption(row, 0, pair.captions[0]))
            tokenize(captions, TOKENS)
    finally:
        setattr(owner, name, original)
    seconds = {
        "read": read.seconds,
        "decode": decode.seconds,
        "resize": image.seconds - decode.seconds,
        "tokenize": tokenize.seconds,
        "batch": assemble.seconds,
    }
    whole = sum(seconds.values())
    return {stage: round(value / whole, 3) for stage, value in seconds.items()}


def measure(folder: Path, size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All loaders in turn, round after round."""
    readers = arguments.readers
    loaders: dict[str, Callable[[], contextlib.AbstractContextManager[Iterator[Any]]]] = {
        "open_clip": lambda: open_clip_batches(folder, size, readers)
    }
    decoders: tuple[Decoder, ...] = ("fast", "pillow")
    for decoder in decoders:
        loaders[decoder] = lambda decoder=decoder: own_batches(folder, size, readers, decoder, processes=False)
        loaders[f"{decoder}_processes"] = lambda decoder=decoder: own_batches(
            folder, size, readers, decoder, processes=True
        )
        loaders[f"bare_{decoder}"] = lambda decoder=decoder: bare_loop(folder, size, readers, decoder)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for _ in range(arguments.rounds):
        for name, opened in loaders.items():
            rates[name].append(rate(opened(), arguments.images))

    def ratio(name: str, other: str, clock: int = 0) -> dict[str, float]:
        values = [a[clock] / b[clock] for a, b in zip(rates[name], rates[other], strict=True)]
        return {
            "median": round(statistics.median(values), 2),
            "low": round(min(values), 2),
            "high": round(max(values), 2),
        }

    return {
        "per_core": {
            name: round(statistics.median(value for value, _ in values) / readers) for name, values in rates.items()
        },
        "per_core_s": {name: round(statistics.median(value for _, value in values)) for name, values in rates.items()},
        "times_open_clip_processor": {name: ratio(name, "open_clip", 1) for name in loaders if name != "open_clip"},
        "times_open_clip": {name: ratio(name, "open_clip") for name in loaders if name != "open_clip"},
        "of_bare": {
            name: ratio(name, f"bare_{name.split('_')[0]}") for name in loaders if name[:4] in ("fast", "pill")
        },
        "stage_shares": {decoder: stage_shares(folder, size, decoder) for decoder in decoders},
    }


def main() -> None:
    """Write shards, measure both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--readers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, 2048)
        vocabulary = "bpe_simple_vocab_16e6.txt.gz"
        (folder / vocabulary).write_bytes((open_clip_package() / vocabulary).read_bytes())
        data = DataConfig(train=str(folder), caption_tokens=TOKENS)
        keep_texts(open_pairs(data), load_tokenizer(folder / vocabulary), data)
        for size in (112, 64):
            record = {
                "size": size,
                "batch": BATCH,
                "readers": arguments.readers,
                "rounds": arguments.rounds,
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "packages": {
                    name: importlib.metadata.version(name)
                    for name in ("pillow", "simplejpeg", "cykooz-resizer", "numpy", "torch", "webdataset")
                },
                **measure(folder, size, arguments),
            }
            print(json.dumps(record, indent=2))
            with (Path(__file__).parent / "results" / "loader_rate.json").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
