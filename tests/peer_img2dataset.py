"""Shards written by the real img2dataset: every good picture comes once per epoch, every failure with its reason.

It downloads from a server of this machine. `make test-data` runs this, and names the program in IMG2DATASET.
"""

import contextlib
import csv
import http.server
import json
import os
import subprocess
import threading
from collections import Counter

import numpy as np
import pytest
from data_files import encode, NumberTexts
from PIL import Image

from clipa_eqx.cli._data_convert import Convert
from clipa_eqx.cli._data_inspect import Inspect
from clipa_eqx.config import AugmentConfig, DataConfig, StageConfig
from clipa_eqx.data import open_pairs, training_batches


# In an order in which each shard holds some of each.
KINDS = ["good", "missing", "good", "broken", "good", "huge", "good", "failing", "uncaptioned", "good"] * 4
GOOD = {number for number, kind in enumerate(KINDS) if kind == "good"}
SKIPPED = {
    "empty caption": 4,
    "img2dataset: HTTP Error 404: Not Found": 4,
    "img2dataset: HTTP Error 500: Internal Server Error": 4,
    "img2dataset: Image decoding error": 4,
    "img2dataset: image area too large": 4,
}
OPTIONS = {
    "input_format": "csv",
    "caption_col": "caption",
    "processes_count": 1,
    "thread_count": 8,
    "image_size": 64,
    "resize_mode": "center_crop",
    "max_image_area": 1_000_000,
    "number_sample_per_shard": 16,
    "save_additional_columns": ["similarity"],
}


def colour(number):
    """Tells the pictures apart, however they are resized and encoded again."""
    return number % 4 * 80 + 8, number // 4 % 4 * 80 + 8, number // 16 * 80 + 8


class _Handler(http.server.BaseHTTPRequestHandler):
    """/good/12.jpg is picture 12."""

    def do_GET(self):
        _, kind, name = self.path.split("/")
        if kind in ("missing", "failing"):
            self.send_error(404 if kind == "missing" else 500)
            return
        size = (2000, 1500) if kind == "huge" else (90, 70)
        data = encode(Image.new("RGB", size, colour(int(name.partition(".")[0]))))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>no picture</html>" if kind == "broken" else data)

    def log_message(self, *args):
        del args


@contextlib.contextmanager
def serving():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module", params=["webdataset", "parquet", "files", "tfrecord"])
def downloaded(request, tmp_path_factory):
    """A folder that img2dataset filled, in one of its forms."""
    folder = tmp_path_factory.mktemp(request.param)
    with serving() as port:
        with (folder / "urls.csv").open("w") as file:
            table = csv.writer(file)
            table.writerow(["url", "caption", "similarity"])
            for number, kind in enumerate(KINDS):
                caption = "" if kind == "uncaptioned" else f"caption {number}"
                table.writerow([f"http://127.0.0.1:{port}/{kind}/{number}.jpg", caption, number / 64])
        options = OPTIONS | {"output_format": request.param, "output_folder": folder / "out"}
        command = [os.environ["IMG2DATASET"], f"--url_list={folder / 'urls.csv'}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        # One of its parts would look for news of itself.
        settings = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_every_good_pair_arrives_once_per_epoch(downloaded):
    data = DataConfig(train=str(downloaded), caption_tokens=2)
    pairs = open_pairs(data)
    assert len(pairs) == len(GOOD) == 20
    stage = StageConfig(batch_size=4, image_size=8, augment=AugmentConfig())
    batches = training_batches(pairs, NumberTexts(), data, stage, seed=0)
    try:
        for _epoch in range(2):
            seen = Counter()
            for batch in (next(batches) for _ in range(5)):
                assert batch.faults == ()
                for number, pixels in zip(batch.tokens[:, 0].tolist(), batch.pixels, strict=True):
                    seen[number] += 1
                    assert np.abs(pixels.mean((0, 1)) - colour(number)).max() < 30, "the picture of another caption"
            assert seen == dict.fromkeys(GOOD, 1)
    finally:
        batches.close()


def test_every_failure_is_counted_with_its_reason(downloaded):
    result = Inspect(str(downloaded)).run()
    assert (result["pairs"], result["skipped"], result["broken"]) == (20, SKIPPED, {})
    assert result["width"] == {"min": 64, "median": 64, "p95": 64, "max": 64}
    assert json.loads(json.dumps(result)) == result


def test_conversion_keeps_all_of_it(downloaded, tmp_path):
    result = Convert(str(downloaded), out=tmp_path / "out").run()
    assert (result["pairs"], result["skipped"]) == (20, SKIPPED)
    before, after = (open_pairs(DataConfig(train=str(folder))) for folder in (downloaded, tmp_path / "out"))
    assert [(pair.image, pair.captions) for pair in map(before.__getitem__, range(20))] == [
        (pair.image, pair.captions) for pair in map(after.__getitem__, range(20))
    ]
