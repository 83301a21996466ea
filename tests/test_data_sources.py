"""Captioned images by index: whatever the layout, an image comes with its own caption, and losses are counted."""

import functools
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from data_files import encode, pair_members, picture, write_tar

from clipa_eqx.config import DataConfig
from clipa_eqx.data import open_pairs, PairSource
from clipa_eqx.data.io import _reading
from clipa_eqx.data.io._reading import ChangedFileError


def open_at(path, **options):
    return open_pairs(DataConfig(train=str(path), **options))


def read_all(pairs):
    """Image by caption."""
    return {pair.captions[0]: pair.image for pair in map(pairs.__getitem__, range(len(pairs)))}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_each_image_comes_with_its_own_caption(tmp_path, form):
    write_tar(tmp_path / "00000.tar", pair_members(3), form)
    # The names decide, in whatever order the files come.
    shuffled = sorted(pair_members(4, first=3), key=lambda member: member[0][::-1])
    write_tar(tmp_path / "00001.tar", shuffled, form)
    pairs = open_at(tmp_path)
    assert isinstance(pairs, PairSource)
    assert read_all(pairs) == {f"caption {number}": encode(picture(number)) for number in range(7)}
    assert pairs.skipped == {}
    assert pairs[0].key == "00000.tar/000000000"
    assert pairs[-1] == pairs[6]
    for outside in (7, -8):
        with pytest.raises(IndexError, match="sequence of 7"):
            pairs[outside]


def test_kinds_of_images_and_captions(tmp_path):
    members = [
        ("a.JPEG", b"1"),
        ("a.caption", b" spaces around \n"),
        ("b.png", b"2"),
        ("b.json", b'{"caption": "of json", "url": "x"}'),
        ("v1.2/c.d.webp", b"3"),
        ("v1.2/c.d.txt", "\ufeffdots in the name".encode()),
        ("v1.2/c.txt", b"of no image"),
        ("._a.jpg", b"shadow"),
        ("._a.txt", b"shadow"),
    ]
    pairs = open_at(write_tar(tmp_path / "x.tar", members))
    assert read_all(pairs) == {"spaces around": b"1", "of json": b"2", "dots in the name": b"3"}
    assert pairs.skipped == {"caption without image": 1}


def test_several_captions_of_one_image(tmp_path):
    members = [("a.jpg", b"1"), ("a.json", b'{"caption": ["one", " ", "two"]}')]
    members += [("b.jpg", b"2"), ("b.json", b'{"caption": ["", " "]}')]
    for path in (write_tar(tmp_path / "x.tar", members), tmp_path / "files"):
        for name, data in members if path.suffix == "" else []:
            path.mkdir(exist_ok=True)
            (path / name).write_bytes(data)
        pairs = open_at(path)
        assert pairs[0].captions == pairs.captions(0) == ("one", "two")
        assert (len(pairs), pairs.skipped) == (1, {"empty caption": 1})


def test_what_cannot_be_used_is_counted(tmp_path):
    members = [
        ("good.jpg", b"1"),
        ("good.txt", b"good"),
        ("empty.jpg", b"1"),
        ("empty.txt", b" \n"),
        ("bytes.jpg", b"1"),
        ("bytes.txt", b"caf\xe9"),
        ("lone_image.jpg", b"1"),
        ("lone_text.txt", b"x"),
        ("null.jpg", b"1"),
        ("null.json", b'{"caption": null}'),
        ("list.jpg", b"1"),
        ("list.json", b'["caption"]'),
        ("half.jpg", b"1"),
        ("half.json", rb'{"caption": "\ud800"}'),
        ("two.jpg", b"1"),
        ("two.png", b"2"),
        ("two.txt", b"which?"),
        ("again.jpg", b"1"),
        ("again.txt", b"first"),
        ("again.txt", b"second"),
        ("n" * 1200 + ".jpg", b"1"),
        ("large.txt", b"x" * (1 << 20 | 1)),
    ]
    pairs = open_at(write_tar(tmp_path / "x.tar", members))
    assert read_all(pairs) == {"good": b"1"}
    assert pairs.skipped == {
        "caption is not UTF-8": 2,
        "caption without image": 1,
        "empty caption": 2,
        "image without caption": 1,
        "name over 1000 bytes": 1,
        "no caption in the .json file": 1,
        "several files of one name": 2,
        "text over 1 MiB": 1,
    }


def test_a_truncated_tar_keeps_its_whole_pairs(tmp_path):
    whole = write_tar(tmp_path / "x.tar", pair_members(4)).read_bytes()
    cut = whole.index(encode(picture(2))) + 100
    (tmp_path / "x.tar").write_bytes(whole[:cut])
    pairs = open_at(tmp_path)
    assert read_all(pairs) == {f"caption {number}": encode(picture(number)) for number in range(2)}
    assert pairs.skipped == {"truncated tar": 1}


def test_a_broken_shard_does_not_stop_the_others(tmp_path):
    write_tar(tmp_path / "0.tar", pair_members(2))
    (tmp_path / "1.tar").write_bytes(b"<html>error 404</html>" * 100)
    (tmp_path / "2.tar").write_bytes(b"")
    write_tar(tmp_path / "3.tar", [])
    pairs = open_at(tmp_path)
    assert len(pairs) == 2
    assert pairs.skipped == {"empty tar": 2, "not a tar": 1}


def test_paths_to_tars(tmp_path):
    for shard in range(8, 12):
        write_tar(tmp_path / "set" / f"{shard:05d}.tar", pair_members(1, first=shard))
    captions = [f"caption {shard}" for shard in range(8, 12)]
    for path in (tmp_path / "set", tmp_path / "set" / "*.tar", tmp_path / "**" / "*.tar"):
        assert list(read_all(open_at(path))) == captions
    assert list(read_all(open_at(tmp_path / "set" / "{00009..00011}.tar"))) == captions[1:]
    assert list(read_all(open_at(tmp_path / "set" / "0{0..0}0{10..11}.tar"))) == captions[2:]
    assert list(read_all(open_at(tmp_path / "set" / "00010.tar"))) == ["caption 10"]
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 shards .*00012"):
        open_at(tmp_path / "set" / "{00010..00012}.tar")
    for path in (tmp_path / "none.tar", tmp_path / "set" / "x*.tar"):
        with pytest.raises(FileNotFoundError, match="no shard at"):
            open_at(path)


@pytest.mark.parametrize("members", [[], [("a.jpg", b"1")], [("a.txt", b"1")]])
def test_no_pair_at_all_is_an_error(tmp_path, members):
    with pytest.raises(ValueError, match=r"holds no pair .*needed are members such as 000\.jpg"):
        open_at(write_tar(tmp_path / "x.tar", members))


def test_fingerprint_follows_the_data_and_not_the_place(tmp_path):
    prints = {
        open_at(write_tar(tmp_path / "a" / "0.tar", pair_members(2))).fingerprint,
        open_at(write_tar(tmp_path / "b" / "0.tar", pair_members(2))).fingerprint,
    }
    assert len(prints) == 1
    changed = [(name, data.replace(b"1", b"2") if name.endswith("1.txt") else data) for name, data in pair_members(2)]
    prints.add(open_at(write_tar(tmp_path / "c" / "0.tar", changed)).fingerprint)
    write_tar(tmp_path / "b" / "1.tar", pair_members(1, first=2))
    prints.add(open_at(tmp_path / "b").fingerprint)
    assert len(prints) == 3


def test_a_shard_that_changes_during_a_run_is_noticed(tmp_path):
    path = write_tar(tmp_path / "x.tar", pair_members(2))
    pairs = open_at(path)
    write_tar(path, pair_members(2, first=10))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ChangedFileError, match="changed after its index was read"):
        pairs[0]
    assert list(read_all(open_at(path))) == ["caption 10", "caption 11"]


def test_threads_and_copies_read_the_same(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", pair_members(5, first=5 * shard))
    pairs = open_at(tmp_path)
    expected = [pairs[index] for index in range(15)] * 20
    copy = pickle.loads(pickle.dumps(pairs))  # noqa: S301
    for source in (pairs, copy):
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(source.__getitem__, list(range(15)) * 20)) == expected


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    for shard in range(5):
        write_tar(tmp_path / f"{shard}.tar", pair_members(1, first=shard))
    monkeypatch.setattr(_reading, "_open", functools.lru_cache(maxsize=2)(_reading._OpenFile))
    pairs = open_at(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda index: pairs[index % 5].captions[0], range(200)))
    assert found == [f"caption {index % 5}" for index in range(200)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_csv(tmp_path):
    for name in ("a.jpg", "b ü.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    rows = b'title,filepath\n"one, with comma\nand line",a.jpg\n,a.jpg\nname\ncaf\xe9,a.jpg\n\ntwo,b \xc3\xbc.jpg\nx,\n'
    (tmp_path / "list.csv").write_bytes(rows)
    pairs = open_at(tmp_path / "list.csv")
    assert read_all(pairs) == {"one, with comma\nand line": b"a.jpg", "two": "b ü.jpg".encode()}
    assert [pairs[index].key for index in range(2)] == ["a.jpg", "b ü.jpg"]
    assert pairs.skipped == {
        "caption is not UTF-8": 1,
        "caption without image": 1,
        "empty caption": 1,
        "row with too few fields": 1,
    }
    (tmp_path / "list.tsv").write_text("\ufeffimage\ttext\na.jpg\tone\ngone.jpg\ttwo\n")
    pairs = open_at(tmp_path / "list.tsv", image_field="image", caption_field="text")
    assert pairs[0].captions == ("one",)
    with pytest.raises(FileNotFoundError, match="gone"):
        pairs[1]
    assert pairs.fingerprint != open_at(tmp_path / "list.csv").fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,title\nx,y\n",
            r"no image among the fields path, title, which its first line, split at ','.*image_field",
        ),
        ("", "no image among the fields .none."),
        ("filepath,title\n", "lists no image"),
        ("filepath,title\nx," + "y" * 200_000, "line 2 is not CSV"),
    ],
)
def test_csv_faults(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_at(tmp_path / "x.csv")


def test_folder(tmp_path):
    files = {"b/1.png": b"1", "b/1.txt": b"one", "a.jpg": b"2", "a.json": b'{"caption": "two"}', "c.webp": b"3"}
    files |= {".hidden/1.jpg": b"4", ".hidden/1.txt": b"four", "d.jpg": b"5", "d.txt": b"\xff"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    pairs = open_at(tmp_path)
    assert [(pair.key, pair.image, pair.captions[0]) for pair in (pairs[0], pairs[1])] == [
        ("a.jpg", b"2", "two"),
        ("b/1.png", b"1", "one"),
    ]
    assert pairs.skipped == {"caption is not UTF-8": 1, "image without caption": 1}
    copy = pickle.loads(pickle.dumps(pairs))  # noqa: S301
    assert read_all(copy) == read_all(pairs)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(ValueError, match=r"data\.train is empty"):
        open_pairs(DataConfig())
    for layout in ("csv", "folder"):
        with pytest.raises(FileNotFoundError, match="nothing at .*none"):
            open_at(tmp_path / "none", layout=layout)
    with pytest.raises(ValueError, match="holds no shard, and no image with a caption"):
        open_at(tmp_path)
