"""Records and tables as img2dataset, TFDS and `datasets` write them: an image comes with its own captions."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pytest
from data_files import (
    encode,
    pair_members,
    picture,
    write_array_record,
    write_arrow,
    write_examples,
    write_parquet,
    write_tar,
)
from google.protobuf.message import Message
from pyarrow import ipc

from clipa_eqx.config import DataConfig
from clipa_eqx.data import open_pairs
from clipa_eqx.data.formats import _array_record_format, _parquet_format
from clipa_eqx.data.formats._example import _example_class, read_example, write_example
from clipa_eqx.data.formats._parquet_format import ParquetFormat
from clipa_eqx.data.index._index import open_shard_index
from clipa_eqx.data.io import _reading
from clipa_eqx.data.io._reading import ChangedFileError


WRITERS = {
    "x.tfrecord": write_examples,
    "x.array_record": write_array_record,
    "x.parquet": write_parquet,
    "x.arrow": write_arrow,
    "y.arrow": lambda path, rows: write_arrow(path, rows, ipc.new_file),
}
IMAGES = [encode(picture(number)) for number in range(8)]


def open_at(path, **options):
    return open_pairs(DataConfig(train=str(path), **options))


def read_all(pairs):
    """Image by caption."""
    return {pair.captions[0]: pair.image for pair in map(pairs.__getitem__, range(len(pairs)))}


def rows(count=8):
    """Rows as img2dataset names their fields, in the records of one shard."""
    for number in range(count):
        yield {
            "key": f"{number:09d}",
            "jpg": IMAGES[number],
            "txt": f"caption {number}",
            "caption": "not this one",
            "width": 48,
            "height": 40,
            "similarity": number / 8,
            "status": "success",
        }


@pytest.mark.parametrize("name", WRITERS)
def test_each_image_comes_with_its_own_caption(tmp_path, name):
    pairs = open_at(WRITERS[name](tmp_path / name, rows()))
    assert read_all(pairs) == {f"caption {number}": image for number, image in enumerate(IMAGES)}
    assert (pairs.skipped, pairs[3].key) == ({}, f"{name}/000000003")
    index = pairs.shards[0]
    assert index.column("width").values.tolist() == [48] * 8
    assert index.column("similarity").values.tolist() == [number / 8 for number in range(8)]
    copy = pickle.loads(pickle.dumps(pairs))  # noqa: S301
    expected = [copy[number] for number in range(8)] * 20
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(pairs.__getitem__, list(range(8)) * 20)) == expected


@pytest.mark.parametrize("name", WRITERS)
def test_named_fields_and_several_captions(tmp_path, name):
    path = WRITERS[name](
        tmp_path / name, ({"picture": image, "short": "s", "long": f"l{n}"} for n, image in enumerate(IMAGES))
    )
    with pytest.raises(ValueError, match="no image among the fields long, picture, short: [18]"):
        open_at(path)
    with pytest.raises(ValueError, match="no caption among the fields long, picture, short: [18]"):
        open_at(path, image_field="picture")
    with pytest.raises(ValueError, match="no caption among the fields"):
        open_at(path, image_field="picture", caption_field="long,shrot")
    pairs = open_at(path, image_field="picture", caption_field="long, short")
    assert pairs[5].captions == ("l5", "s")
    assert open_at(path, image_field="picture", caption_field="short")[5].captions == ("s",)
    assert pairs[5].image == IMAGES[5]


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_used_is_counted(tmp_path, name):
    failed = {"jpg": b"", "txt": "", "status": "failed_to_download", "error_message": "HTTP Error 404:\nNot Found"}
    bad = [
        {"jpg": b"1", "txt": "good"},
        {"jpg": b"1", "txt": " "},
        {"jpg": b"", "txt": "no image"},
        failed,
        failed | {"status": "failed_to_resize", "error_message": "image decoding error"},
        {"jpg": b"1", "txt": "x" * (1 << 20 | 1)},
    ]
    complete = [{"status": "success", "error_message": ""} | row for row in bad]
    if not name.endswith("record"):
        complete = [row | {"jpg": row["jpg"] or None} for row in complete]
    pairs = open_at(WRITERS[name](tmp_path / name, complete))
    assert read_all(pairs) == {"good": b"1"}
    assert pairs.skipped == {
        "caption without image": 1,
        "empty caption": 1,
        "img2dataset: HTTP Error 404: Not Found": 1,
        "img2dataset: image decoding error": 1,
        "text over 1 MiB": 1,
    }


def test_lists_of_captions(tmp_path):
    listed = [{"image": IMAGES[0], "captions": ["one", "", "two"]}, {"image": IMAGES[1], "captions": []}]
    for name in ("x.parquet", "x.arrow"):
        assert open_at(WRITERS[name](tmp_path / name, listed))[0].captions == ("one", "two")
    path = write_examples(
        tmp_path / "coco-train.tfrecord-00000-of-00001", [{"image": IMAGES[0], "captions/text": ["a", "b"]}]
    )
    assert open_at(path)[0].captions == ("a", "b")


def test_a_folder_of_datasets(tmp_path):
    structs = [
        {"image": {"bytes": image, "path": f"{n}.jpg"}, "text": f"caption {n}"} for n, image in enumerate(IMAGES)
    ]
    structs.append({"image": None, "text": "nothing"})
    structs.append({"image": {"bytes": None, "path": "elsewhere.jpg"}, "text": "elsewhere"})
    expected = {f"caption {number}": image for number, image in enumerate(IMAGES)}

    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    write_parquet(hub / "train-00000-of-00002.parquet", structs[:4])
    write_parquet(hub / "train-00001-of-00002.parquet", structs[4:])
    write_parquet(hub / "test-00000-of-00001.parquet", [structs[0] | {"text": "of the test split"}])
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_arrow(saved / "data-00000-of-00001.arrow", structs)
    write_arrow(saved / "cache-0123.arrow", structs)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    for folder in (hub.parent, saved.parent, saved):
        pairs = open_at(folder)
        assert (read_all(pairs), pairs.skipped) == (expected, {"caption without image": 2})
    assert len(open_at(hub / "*.parquet")) == 9, "a glob takes what it names"


def test_folders_of_img2dataset(tmp_path):
    """Beside each shard stand a table and statistics; of what failed, the statistics tell the reasons."""
    status = {"success": 4, "HTTP Error 404: Not Found": 2, "image decoding error": 1}
    expected = {f"caption {number}": IMAGES[number] for number in range(4)}
    failures = {"img2dataset: HTTP Error 404: Not Found": 2, "img2dataset: image decoding error": 1}
    for form in ("tar", "tfrecord", "files"):
        folder = tmp_path / form
        folder.mkdir()
        write_parquet(folder / "00000.parquet", ({"key": "0", "caption": "c", "status": "success"} for _ in range(7)))
        (folder / "00000_stats.json").write_text(json.dumps({"count": 7, "status_dict": status}))
        if form == "tar":
            write_tar(folder / "00000.tar", pair_members(4))
        elif form == "tfrecord":
            write_examples(folder / "00000.tfrecord", rows(4))
        else:
            (folder / "00000").mkdir()
            for name, data in pair_members(4):
                (folder / "00000" / name).write_bytes(data)
        pairs = open_at(folder)
        assert (read_all(pairs), pairs.skipped) == (expected, failures)
        (folder / "00000_stats.json").write_text('{"status_dict": [')
        assert len(open_at(folder)) == 4


def test_truncation_and_foreign_files(tmp_path):
    whole = {name: WRITERS[name](tmp_path / name, rows()).read_bytes() for name in WRITERS}
    reasons = {"tfrecord": "TFRecord", "array_record": "ArrayRecord", "parquet": "Parquet", "arrow": "Arrow"}
    for name, content in whole.items():
        kind = reasons[name.partition(".")[2]]
        for number, broken in enumerate((b"", b"<html>error</html>" * 100, content[: len(content) // 2])):
            path = tmp_path / f"{number}{name}"
            path.write_bytes(broken)
            if number == 2 and kind in ("TFRecord", "Arrow"):
                pairs = open_at(path)
                assert list(pairs.skipped) in (["truncated TFRecord file"], ["damaged Arrow file"])
                assert read_all(pairs) == {f"caption {n}": IMAGES[n] for n in range(len(pairs))}
            else:
                with pytest.raises(ValueError, match=rf"no pair \([^;]*{kind} file: 1\)"):
                    open_at(path)
    (tmp_path / "z.tfrecord").write_bytes(b"\x1f\x8b" + whole["x.tfrecord"])
    with pytest.raises(ValueError, match="compressed TFRecord file: unpack it"):
        open_at(tmp_path / "z.tfrecord")


def test_compressed_and_dictionary_arrow_is_refused_with_a_reason(tmp_path):
    options = ipc.IpcWriteOptions(compression="zstd")
    with pytest.raises(ValueError, match="compressed Arrow file: save it without"):
        open_at(write_arrow(tmp_path / "z.arrow", rows(), options=options))
    table = pyarrow.Table.from_pylist(list(rows()))
    table = table.set_column(2, "txt", table["txt"].dictionary_encode())
    with ipc.new_stream(str(tmp_path / "d.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="Arrow message of kind dictionary"):
        open_at(tmp_path / "d.arrow")
    with pytest.raises(ValueError, match="images of type string and not bytes"):
        open_at(write_parquet(tmp_path / "p.parquet", [{"image": "a.jpg", "text": "x"}]))


def test_a_shard_that_changes_during_a_run_is_noticed(tmp_path):
    for name in WRITERS:
        path = WRITERS[name](tmp_path / name, rows())
        pairs = open_at(path)
        WRITERS[name](path, rows(4))
        # As in a process that has not opened the file yet.
        _reading._open.cache_clear()
        _array_record_format._open.cache_clear()
        with pytest.raises(ChangedFileError, match="again|changed"):
            pairs[0]


def test_row_groups_are_kept_within_bounds(tmp_path, monkeypatch):
    reads = []
    read_group = _parquet_format._read_group
    monkeypatch.setattr(_parquet_format, "_read_group", lambda *given: reads.append(given[2]) or read_group(*given))
    monkeypatch.setattr(_parquet_format, "_KEPT", _parquet_format._KeptGroups())
    index = open_shard_index(write_parquet(tmp_path / "x.parquet", rows()), ParquetFormat())
    for number in (0, 2, 1, 4, 7, 0, 3):
        assert index.image(index.pair(number)) == IMAGES[number]
    assert reads == [0, 4, 7]
    monkeypatch.setattr(_parquet_format, "_MOST_KEPT_BYTES", 1)
    monkeypatch.setattr(_parquet_format, "_KEPT", _parquet_format._KeptGroups())
    for number in (0, 1, 3, 0):
        assert index.image(index.pair(number)) == IMAGES[number]
    assert reads[3:] == [0, 3, 0]
    assert len(_parquet_format._KEPT._groups) == 1


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("x.parquet", "pyarrow", "parquet"),
        ("x.arrow", "pyarrow", "parquet"),
        ("x.tfrecord", "google_crc32c", "tfrecord"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, module, extra):
    path = WRITERS[name](tmp_path / name, rows())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"clipa_eqx\[{extra}\]"):
        open_at(path)


def test_examples_are_those_of_tensorflow():
    """The bytes of {"a": int64 [3], "b": bytes ["x"]} as the published field numbers have them."""
    first, second = b"\x0a\x01a\x12\x05\x1a\x03\x0a\x01\x03", b"\x0a\x01b\x12\x05\x0a\x03\x0a\x01x"
    for parts in ((first, second), (second, first)):
        body = b"".join(b"\x0a" + bytes([len(part)]) + part for part in parts)
        assert read_example(b"\x0a" + bytes([len(body)]) + body) == {"a": [3], "b": [b"x"]}
    assert issubclass(_example_class(), Message)
    values = {"text": "ü", "blob": b"\xff", "list": ["a", "b"], "int": -7, "float": 0.5}
    assert read_example(write_example(values)) == {
        "text": ["ü".encode()],
        "blob": [b"\xff"],
        "list": [b"a", b"b"],
        "int": [-7],
        "float": [0.5],
    }
