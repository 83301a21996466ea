"""Small real data and small runs that several tests share."""

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from clipa_eqx.config import (
    CheckpointConfig,
    CLIPConfig,
    config_to_json,
    DataConfig,
    OptimConfig,
    RunConfig,
    StageConfig,
    TextConfig,
    VisionConfig,
)


COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "white": (245, 245, 245)}
PLACES = ("left", "right", "top", "bottom")


def jpeg(seed, color, place, size=32):
    """A JPEG with a bright half and some noise, so that no two are alike."""
    pixels = np.random.default_rng(seed).integers(0, 60, (size, size, 3)).astype(np.float64)
    half = size // 2
    window = {
        "left": np.s_[:, :half],
        "right": np.s_[:, half:],
        "top": np.s_[:half],
        "bottom": np.s_[half:],
    }[place]
    pixels[window] = 0.2 * pixels[window] + 0.8 * np.array(COLORS[color])
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(directory, pairs=64, shards=2, broken=()):
    """Tar shards in img2dataset's layout; pictures whose number is in `broken` are cut short."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(directory / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * pairs // shards, (shard + 1) * pairs // shards):
                color, place = str(rng.choice([*COLORS])), str(rng.choice(PLACES))
                picture = jpeg(number, color, place)
                caption = f"a {color} half at the {place}"
                files = {
                    "jpg": picture[: len(picture) // 3] if number in broken else picture,
                    "txt": caption.encode(),
                    "json": json.dumps({"caption": caption, "key": f"{number:09d}"}).encode(),
                }
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return directory


def write_vocabulary(path):
    """A BERT vocabulary file of the few words used above."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "at", "half", "the", *COLORS, *PLACES]
    path.write_text("\n".join(words) + "\n")
    return path


def tiny_run(directory, **fields):
    """A two-stage run over `write_shards` data: a quarter of the patches, then all; 6 + 4 steps of 16 pairs."""
    model = CLIPConfig(
        embed=16,
        vision=VisionConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2, hidden=32),
        text=TextConfig(context_length=8, vocab_size=20, width=16, depth=1, heads=2, hidden=32),
    )
    few = StageConfig(
        name="few",
        samples=6 * 16,
        batch_size=16,
        image_size=24,
        image_reduction="grid",
        keep_patches=4,
        text_length=5,
        text_reduction="syntax",
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
    )
    full = StageConfig(
        name="all",
        samples=4 * 16,
        batch_size=16,
        image_size=32,
        text_length=8,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
    )
    run = RunConfig(
        model=model,
        stages=(few, full),
        data=DataConfig(
            train=str(directory / "train"), tokenizer=str(directory / "vocab.txt"), caption_tokens=8, threads=2
        ),
        checkpoint=CheckpointConfig(every_steps=2),
        recipe="tiny",
        log_every_steps=1,
    )
    return dataclasses.replace(run, **fields)


def write_config(path, run):
    """The run as a config.json file."""
    path.write_text(json.dumps(config_to_json(run)))
    return path


def xla_flags(devices):
    """Flags of a process with so many CPU devices that spends little on compiling."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"


def start_clipa(*arguments, devices=1, cache=None):
    """Start the command in a process of its own, as a user does, on CPU devices."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    return subprocess.Popen(
        [sys.executable, "-m", "clipa_eqx", *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_clipa(*arguments, devices=1, cache=None, timeout_s=240):
    """Run the command to its end; returns exit code, standard output and standard error."""
    process = start_clipa(*arguments, devices=devices, cache=cache)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


TINY_MODEL = CLIPConfig(
    embed=16,
    vision=VisionConfig(image_size=16, patch_size=4, width=16, depth=1, heads=2, hidden=32),
    text=TextConfig(context_length=6, vocab_size=50, width=16, depth=1, heads=2, hidden=32),
    init_logit_bias=-10.0,
)


def tiny_batch(seed=0, rows=16):
    """Random pixels and tokens for `TINY_MODEL`."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 50, (rows, 12)).astype(np.int32)
    tokens[:, 9:] = 0
    return {
        "pixels": rng.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8),
        "tokens": tokens,
        "word_class": rng.integers(0, 4, (rows, 12)).astype(np.uint8),
    }


def message(*fields):
    """A protocol-buffer message of (number, value): integers, floats, bytes."""
    data = b""
    for number, value in fields:
        if isinstance(value, int):
            data += bytes([number << 3, value])
        elif isinstance(value, float):
            data += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            data += bytes([number << 3 | 2, len(value)]) + value
    return data


PIECES = [("<pad>", 3), ("</s>", 3), ("<unk>", 2), *((text, 1) for text in ("▁a", "▁dog", "▁do", "g", "s", "▁"))]


def spiece(pieces=PIECES, kind=1):
    """A `spiece.model` without a table of characters."""
    listed = [message((1, text.encode()), (2, -float(index)), (3, kind)) for index, (text, kind) in enumerate(pieces)]
    return message(*((1, piece) for piece in listed), (2, message((3, kind))), (3, message((1, b"identity"))))


def trace_events(run_dir):
    """Name and step number, if any, of each event of each trace of a run, in the order in which traces were written."""
    traces = []
    for file in sorted((run_dir / "profile").rglob("*.xplane.pb")):
        lines = [line for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines]
        with warnings.catch_warnings():
            # A class of the profiler's own has no module, of which newer Pythons warn.
            warnings.filterwarnings("ignore", "builtin type event_stats has no __module__", DeprecationWarning)
            traces.append([(event.name, dict(event.stats).get("step_num")) for line in lines for event in line.events])
    return traces
