"""Conversion keeps every pair as it is, and goes on where it was stopped."""

import json
import os
import tarfile

import pytest
from data_files import encode, picture, write_parquet

from clipa_eqx.config import DataConfig
from clipa_eqx.data import convert_pairs, open_pairs


IMAGES = [encode(picture(0)), encode(picture(1), "PNG"), encode(picture(2), "WEBP"), encode(picture(3))]


def rows(first):
    for number, image in enumerate(IMAGES, start=first):
        captions = [f"caption {number}", "and another"] if number % 2 else [f"caption {number}"]
        yield {
            "key": f"a/{number}.b",
            "image": image,
            "caption": captions,
            "similarity": number / 8,
            "prose": "p" * 2001,
        }


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for shard in range(3):
        write_parquet(folder / f"train-{shard}.parquet", [*rows(4 * shard), {"image": None, "caption": ["x"]}])
    return folder


def read_all(path):
    pairs = open_pairs(DataConfig(train=str(path)))
    return [(pair.image, pair.captions) for pair in map(pairs.__getitem__, range(len(pairs)))]


def convert(path, out, **options):
    return convert_pairs(DataConfig(train=str(path)), out, **options)


@pytest.mark.parametrize("to", ["tar", "array-record"])
def test_there_and_back(source, tmp_path, to):
    other = {"tar": "array-record", "array-record": "tar"}[to]
    summary = convert(source, tmp_path / "one", to=to)
    assert (summary.pairs, summary.shards, summary.skipped) == (12, 3, {"caption without image": 3})
    assert convert(tmp_path / "one", tmp_path / "two", to=other).pairs == 12
    assert read_all(source) == read_all(tmp_path / "one") == read_all(tmp_path / "two")
    for folder in ("one", "two"):
        index = open_pairs(DataConfig(train=str(tmp_path / folder))).shards[1]
        assert index.column("similarity").values.tolist() == [number / 8 for number in range(4, 8)]
        assert index.column("width").values.tolist() == [48] * 4


def test_tars_are_those_of_img2dataset(source, tmp_path):
    convert(source, tmp_path / "out", to="tar")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
        fields = [json.loads(tar.extractfile(f"{number:09d}.json").read()) for number in (0, 1)]
    assert names[:4] == ["000000000.jpg", "000000000.txt", "000000000.json", "000000001.png"]
    shared = {"width": 48, "height": 40}
    assert fields[0] == shared | {"key": "a/0.b", "caption": "caption 0", "similarity": 0}
    assert fields[1] == shared | {"key": "a/1.b", "caption": ["caption 1", "and another"], "similarity": 0.125}


def test_only_what_is_missing_is_written(source, tmp_path):
    out = tmp_path / "out"
    assert convert(source, out, to="tar").shards_kept == 0
    whole = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert convert(source, out, to="tar").shards_kept == 3
    (out / "00001.tar").unlink()
    (out / "00002.tar").write_bytes(b"cut short")
    seen = []
    summary = convert(source, out, to="tar", report=lambda done, total: seen.append((done, total)))
    assert (summary.shards_kept, summary.pairs, seen) == (1, 12, [(1, 3), (2, 3), (3, 3)])
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == whole
    write_parquet(source / "train-0.parquet", rows(20))
    summary = convert(source, out, to="tar")
    assert (summary.shards_kept, summary.skipped) == (2, {"caption without image": 2})
    assert sorted(path.name for path in out.iterdir()) == [".clipa_convert", *sorted(whole)]


def test_a_stop_leaves_no_half_file(source, tmp_path, monkeypatch):
    replaced = []

    def stop(path, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        os.replace(path, target)

    monkeypatch.setattr("pathlib.Path.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", to="tar")
    assert [path.name for path in (tmp_path / "out").glob("*tar*")] == ["00000.tar"]


def test_several_processes_write_the_same(source, tmp_path):
    convert(source, tmp_path / "one", to="tar")
    convert(source, tmp_path / "two", to="tar", processes=2)
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_single_files_become_shards(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(IMAGES[0])
    lines = [f"{number}.jpg,caption {number}" for number in range(5)]
    (folder / "list.csv").write_text("\n".join(["filepath,title", *lines, "gone.jpg,gone", "0.jpg,"]))
    summary = convert(folder / "list.csv", tmp_path / "out", to="tar", pairs_per_shard=3)
    assert (summary.pairs, summary.shards) == (5, 2)
    assert summary.skipped == {"No such file or directory": 1, "empty caption": 1}
    assert [captions for _, captions in read_all(tmp_path / "out")] == [(f"caption {n}",) for n in range(5)]


def test_faults_of_the_call(source, tmp_path):
    with pytest.raises(ValueError, match="pairs_per_shard must be at least 1"):
        convert(source, tmp_path / "out", to="tar", pairs_per_shard=0)
    with pytest.raises(FileNotFoundError, match="no shard at"):
        convert(tmp_path / "none.tar", tmp_path / "out", to="tar")
    with pytest.raises(ValueError, match=r"data\.train is empty"):
        convert("", tmp_path / "out", to="tar")
