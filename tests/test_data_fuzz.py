"""Two thousand damaged files, through every layout: nothing crashes or hangs, no image gets the caption of another."""

import contextlib
import faulthandler
import hashlib
import random
import re
import tarfile

import pytest
from data_files import encode, picture, write_array_record, write_arrow, write_examples, write_parquet, write_tar
from pyarrow import ipc

from clipa_eqx.config import DataConfig
from clipa_eqx.data import eval_image, ImageError, open_pairs
from clipa_eqx.data.io._reading import ChangedFileError


PAIRS = 6
FILES = 2000
LONGEST_S = 60
MARK = re.compile(rb"<image (\d)>")


def marked_image(number):
    """A JPEG with its number in a comment at its start, and behind its end."""
    data, mark = encode(picture(number, width=16, height=16)), b"<image %d>" % number
    return data[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + data[2:] + mark


IMAGES = [marked_image(number) for number in range(PAIRS)]
# A flipped bit must not make the name or caption of one pair that of another: plain text carries no checksum.
NAMES = [hashlib.sha256(bytes([number])).hexdigest()[:16] for number in range(PAIRS)]
CAPTIONS = [f"a caption of pair {name}, written out to its end" for name in NAMES]
ROWS = [{"key": NAMES[n], "jpg": IMAGES[n], "txt": CAPTIONS[n], "score": n / 8} for n in range(PAIRS)]


def write_members(form):
    def write(path, rows):
        members = ((f"{row['key']}.{kind}", row[kind]) for row in rows for kind in ("jpg", "txt"))
        encoded = ((name, data if isinstance(data, bytes) else data.encode()) for name, data in members)
        return write_tar(path, encoded, form)

    return write


def write_csv(path, rows):
    for row in rows:
        (path.parent / f"{row['key']}.jpg").write_bytes(row["jpg"])
    path.write_text("filepath,title\n" + "".join(f'{row["key"]}.jpg,"{row["txt"]}"\n' for row in rows))
    return path


LAYOUTS = {
    "pax.tar": write_members(tarfile.PAX_FORMAT),
    "gnu.tar": write_members(tarfile.GNU_FORMAT),
    "x.tfrecord": write_examples,
    "x.array_record": write_array_record,
    "x.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": lambda path, rows: write_arrow(path, rows, ipc.new_file),
    "x.csv": write_csv,
}


def damaged(content, rng):
    """A file as transfers, disks and other programs leave it."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 7, 300, 1500)))
    kind = rng.choice(("flip", "flip", "flips", "cut", "zeros", "noise", "lost", "added", "header"))
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if kind == "flip" else 20):
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == "header":
        return rng.randbytes(min(start, 600)) + content[min(start, 600) :]
    middle = {"cut": b"", "zeros": bytes(end - start), "lost": b""}.get(kind, rng.randbytes(end - start))
    return content[:start] + middle + content[len(content) if kind == "cut" else start if kind == "added" else end :]


@pytest.fixture
def deadline():
    """A hang ends the test run with a traceback."""
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def check(path):
    """Read all pairs of a damaged file; returns how many came whole, and whether a loss was reported."""
    try:
        pairs = open_pairs(DataConfig(train=str(path)))
    except ValueError as error:
        return 0, str(error)
    whole, noticed = 0, dict(pairs.skipped)
    for number in range(len(pairs)):
        try:
            pair = pairs[number]
        except (OSError, ChangedFileError) as error:
            noticed[str(error)] = 1
            continue
        marks = {int(mark) for mark in MARK.findall(pair.image)}
        if pair.captions[0] in CAPTIONS:
            caption = CAPTIONS.index(pair.captions[0])
            assert not marks or caption in marks, f"image {marks} came with caption {caption}"
            whole += pair.image == IMAGES[caption]
        else:
            noticed["another caption"] = 1
        if pair.image not in IMAGES:
            noticed["another image"] = 1
            with contextlib.suppress(ImageError):
                eval_image(pair.image, 8, resize="squash", interpolation="bilinear", max_pixels=1 << 20)
    return whole, noticed


@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_files(tmp_path, deadline, name):
    content = LAYOUTS[name](tmp_path / name, ROWS).read_bytes()
    assert check(tmp_path / name) == (PAIRS, {})
    lost = 0
    for seed in range(FILES // len(LAYOUTS)):
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(damaged(content, random.Random(f"{name} {seed}")))
        whole, noticed = check(path)
        # A text table that lost some lines is a whole one.
        assert whole == PAIRS or noticed or name == "x.csv", f"file {seed} lost {PAIRS - whole} pairs in silence"
        lost += whole < PAIRS
        path.unlink()
    assert lost > FILES // len(LAYOUTS) // 4, "most damage must hit something, or nothing is tested"


def test_damaged_files_of_a_folder(tmp_path, deadline):
    for row in ROWS:
        for kind in ("jpg", "txt"):
            data = row[kind] if isinstance(row[kind], bytes) else row[kind].encode()
            (tmp_path / f"{row['key']}.{kind}").write_bytes(data)
    for seed in range(100):
        rng = random.Random(seed)
        path = rng.choice(sorted(tmp_path.iterdir()))
        content = path.read_bytes()
        path.write_bytes(damaged(content, rng))
        whole, noticed = check(tmp_path)
        assert whole >= PAIRS - 1
        assert whole == PAIRS or noticed
        path.write_bytes(content)
