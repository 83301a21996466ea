"""What weights are worth on other data: a run that starts from a finished demo beside one that starts from noise.

A second world has another seed, other pictures, other left-out combinations, and other colours under other names: the
channels of each picture change places, so that what was red is lime. Both runs are measured on it alike, on all its
classes and on those that its training never shows. The weights pass through an export to open_clip's form.

    python experiments/fine_tune_world.py runs/fine_tune_world

Started again, it continues where it stopped. The last line is one JSON object.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, cast, IO

from PIL import Image

from clipa_eqx.config import DataConfig
from clipa_eqx.data import make_world, open_pairs, train_tokenizer


# Red, green and blue become green, blue and red.
COLORS = {
    "red": "lime",
    "orange": "mint",
    "yellow": "turquoise",
    "green": "indigo",
    "cyan": "magenta",
    "blue": "crimson",
    "purple": "golden",
    "pink": "pistachio",
    "brown": "jade",
}
SEED = 7
SCRATCH_SAMPLES = 232_000
FEW_SAMPLES = SCRATCH_SAMPLES // 5


def main(directory: Path) -> None:
    demo, exported, other = directory / "demo", directory / "exported", directory / "other"
    clipa("demo", demo)
    if not (exported / "open_clip_config.json").is_file():
        clipa("export", demo / "run", "--to", "open_clip", "--out", exported)
    if not (other / "tokenizer").is_dir():
        make_other_world(directory / "drawn", other)
    data = ["--data.train", other / "train", "--data.caption-tokens", "24", "--seed", SEED]
    measured = ["--classification", other / "classification", "--retrieval", other / "retrieval", "--json"]
    tuned = ["--init-from", exported, "--run-dir", directory / "tuned"]
    sizes = [f"stages.0.samples={FEW_SAMPLES}", "stages.0.batch_size=128", "stages.0.optim.learning_rate=1e-3"]
    results = {
        "from_weights": clipa("train", *tuned, *data, *measured, "--set", *sizes, "stages.0.optim.warmup_steps=20"),
        "from_noise": clipa(
            *("train", "world-tiny", "--run-dir", directory / "scratch", *data, *measured),
            *("--data.tokenizer", other / "tokenizer"),
        ),
    }
    samples = {"from_weights": FEW_SAMPLES, "from_noise": SCRATCH_SAMPLES}
    rows = {name: {"samples": samples[name], **result} for name, result in results.items()}
    sys.stdout.write(json.dumps(rows) + "\n")


def clipa(*arguments: object) -> dict[str, Any]:
    """Run a command; returns what it prints last, where that is JSON."""
    command = [sys.executable, "-m", "clipa_eqx", *map(str, arguments)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    last = out.strip().splitlines()[-1]
    return json.loads(last) if last.startswith("{") else {}


def make_other_world(drawn: Path, out: Path) -> None:
    """Draw a world with another seed and write it again in other colours."""
    if not (drawn / "world.json").is_file():
        make_world(drawn, seed=SEED, processes=os.cpu_count() or 1)
    for path in sorted(path for path in drawn.rglob("*") if path.is_file()):
        target = out / path.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tar":
            recolor_tar(path, target)
        else:
            target.write_bytes(recolor(path.suffix, path.read_bytes()))
    source = open_pairs(DataConfig(train=str(out / "train")))
    captions = (source.captions(index)[0] for index in range(20_000))
    train_tokenizer(captions, vocab_size=512).save(out / "tokenizer")


def recolor_tar(path: Path, target: Path) -> None:
    with tarfile.open(path) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = recolor(Path(member.name).suffix, cast(IO[bytes], old.extractfile(member)).read())
            copy = tarfile.TarInfo(member.name)
            copy.size = len(content)
            new.addfile(copy, io.BytesIO(content))


def recolor(suffix: str, content: bytes) -> bytes:
    """A picture with its channels changed, or a text with its colour words changed."""
    if suffix in (".jpg", ".png", ".webp"):
        red, green, blue = Image.open(io.BytesIO(content)).convert("RGB").split()
        buffer = io.BytesIO()
        Image.merge("RGB", (blue, red, green)).save(buffer, "JPEG" if suffix == ".jpg" else suffix[1:], quality=90)
        return buffer.getvalue()
    if suffix in (".txt", ".json"):
        words = re.compile(r"\b(" + "|".join(COLORS) + r")\b")
        return words.sub(lambda match: COLORS[match[0]], content.decode()).encode()
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
