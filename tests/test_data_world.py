"""The built-in world: what it writes, that it can be had again, and that it keeps its promises about what is unseen."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipa_eqx.config import DataConfig
from clipa_eqx.data import open_classification, open_pairs, open_retrieval
from clipa_eqx.data.world import make_world
from clipa_eqx.data.world._scene import COLORS, SHAPES, SIZES, TEXTURES


SMALL = {"pairs": 300, "classification_images": 130, "retrieval_images": 12, "image_size": 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    return directory, make_world(directory, **SMALL, seed=3)


def _read(path):
    """Files of a tar by key and extension."""
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def _digests(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_training_pairs_are_laid_out_as_img2dataset_does(world):
    directory, summary = world
    samples = _read(directory / "train" / "00000.tar")
    assert len(samples) == summary.pairs == 300
    assert list(samples) == sorted(samples)
    assert next(iter(samples)) == "000000000"
    for key, files in samples.items():
        assert set(files) == {"jpg", "txt", "json"}
        record = json.loads(files["json"])
        assert record["key"] == key
        assert record["status"] == "success"
        assert record["caption"] == files["txt"].decode()
        with Image.open(io.BytesIO(files["jpg"])) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert picture.size == (record["width"], record["height"]) == (32, 32)
    stats = json.loads((directory / "train" / "00000_stats.json").read_text())
    assert stats["successes"] == 300


def test_world_is_as_rich_as_promised(world):
    directory, summary = world
    assert len(SHAPES) >= 12
    assert len(COLORS) >= 10
    assert len(SIZES) >= 3
    assert len(TEXTURES) >= 4
    assert summary.classes == len(SHAPES) * len(COLORS)
    records = [json.loads(files["json"]) for files in _read(directory / "train" / "00000.tar").values()]
    assert {len(record["objects"]) for record in records} == {1, 2, 3}
    captions = [record["caption"] for record in records]
    words = {word for caption in captions for word in caption.split()}
    assert words >= set(SHAPES) | set(COLORS) | {"left", "above", "photo", "something"}
    assert len(set(captions)) > 200


def test_unseen_combinations_never_occur_in_training(world):
    directory, summary = world
    names = (directory / "classification" / "classnames.txt").read_text().splitlines()
    listed = [int(line) for line in (directory / "classification" / "unseen.txt").read_text().splitlines()]
    assert listed == list(summary.unseen)
    assert len(listed) * 5 == len(names) == summary.classes
    unseen = {names[index] for index in listed}
    shown = set()
    for files in _read(directory / "train" / "00000.tar").values():
        objects = json.loads(files["json"])["objects"]
        shown |= {f"{thing['color']} {thing['shape']}" for thing in objects}
        caption = f" {files['txt'].decode()} "
        for name in unseen:
            color, shape = name.split()
            assert f" {name} " not in caption
            assert f" {shape} in {color} " not in caption
            assert f" {shape} that is {color} " not in caption
    assert shown
    assert not shown & unseen
    # No shape and no colour is missing as such.
    assert {name.split()[0] for name in shown} == set(COLORS)
    assert {name.split()[1] for name in shown} == set(SHAPES)


def test_classification_set_has_clip_benchmarks_layout(world):
    directory, summary = world
    folder = directory / "classification"
    names = (folder / "classnames.txt").read_text().splitlines()
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert all("{c}" in template for template in templates)
    assert (folder / "test" / "nshards.txt").read_text().strip() == "1"
    samples = _read(folder / "test" / "0.tar")
    labels = [int(files["cls"]) for files in samples.values()]
    counts = np.bincount(labels, minlength=len(names))
    assert len(labels) == summary.classification_images
    assert counts.min() == 1
    assert counts.max() == 2


def test_retrieval_captions_name_every_object(world):
    directory, summary = world
    assert (directory / "retrieval" / "dataset_type.txt").read_text().strip() == "retrieval"
    samples = _read(directory / "retrieval" / "test" / "0.tar")
    assert len(samples) == summary.retrieval_images
    for files in samples.values():
        captions = files["txt"].decode().split("\n")
        assert len(captions) == 5
        for caption in captions:
            assert sum(word in SHAPES for word in caption.split()) >= 2
            assert sum(word in COLORS for word in caption.split()) >= 2


def test_the_package_reads_what_it_wrote(tmp_path):
    summary = make_world(tmp_path, **SMALL | {"pairs": 20})
    pairs = open_pairs(DataConfig(train=str(tmp_path / "train")))
    classification = open_classification(tmp_path / "classification")
    retrieval = open_retrieval(tmp_path / "retrieval")
    assert not pairs.skipped
    assert not retrieval.skipped
    assert (len(pairs), len(classification), len(retrieval)) == (20, 130, 12)
    assert classification.class_names[classification.label(0)] == "red circle"
    assert len(retrieval.captions(0)) == 5
    assert summary.classes == len(classification.class_names)
    with Image.open(io.BytesIO(pairs[0].image)) as picture:
        assert picture.size == (32, 32)


def test_pictures_show_the_color_that_their_class_names(world):
    directory, _ = world
    names = (directory / "classification" / "classnames.txt").read_text().splitlines()
    for files in _read(directory / "classification" / "test" / "0.tar").values():
        color = names[int(files["cls"])].split()[0]
        pixels = np.asarray(Image.open(io.BytesIO(files["jpg"])), float)
        distance = np.abs(pixels - np.array(COLORS[color])).max(axis=2)
        assert (distance < 60).mean() > 0.02


def test_same_seed_gives_the_same_bytes_in_any_number_of_processes(world, tmp_path):
    directory, _ = world
    make_world(tmp_path / "again", **SMALL, seed=3, processes=2)
    other = make_world(tmp_path / "other", **SMALL | {"pairs": 20}, seed=4)
    assert _digests(tmp_path / "again") == _digests(directory)
    assert set(_digests(tmp_path / "other").values()).isdisjoint(
        digest for name, digest in _digests(directory).items() if name.endswith(".tar")
    )
    assert other.unseen != world[1].unseen


def test_summary_is_written_last(world):
    directory, summary = world
    written = json.loads((directory / "world.json").read_text())
    assert written["pairs"] == summary.pairs
    assert tuple(written["unseen"]) == summary.unseen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"seed": -1}, "seed must lie in"),
        ({"classification_images": 119}, "classification_images must be at least 120, got 119"),
        ({"retrieval_images": 0}, "retrieval_images must be at least 1"),
        ({"image_size": 16}, "image_size must lie in"),
        ({"processes": 0}, "processes must be at least 1"),
    ],
)
def test_impossible_numbers(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_world(tmp_path, **SMALL | change)
    assert not any(tmp_path.iterdir())


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something already"):
        make_world(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="holds something already"):
        make_world(tmp_path / "mine.txt", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
