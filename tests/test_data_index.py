"""The index of a tar is built once, reused while it fits, and rebuilt when it does not."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_files import encode, pair_members, picture, write_tar

from clipa_eqx.config import DataConfig
from clipa_eqx.data import open_pairs
from clipa_eqx.data.formats._tar_format import TarFormat
from clipa_eqx.data.index import _index
from clipa_eqx.data.index._index import open_shard_index
from clipa_eqx.data.index._index_file import hash_text
from clipa_eqx.data.io._reading import ChangedFileError


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """Counts the indexes that are built."""
    built = []

    def build(shard, format):
        built.append(shard.path.name)
        return original(shard, format)

    original = _index._build
    monkeypatch.setattr(_index, "_build", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return built


def captions(folder):
    pairs = open_pairs(DataConfig(train=str(folder)))
    return [pairs.captions(index)[0] for index in range(len(pairs))]


def index_files(folder):
    return sorted((folder / ".clipa_index").iterdir())


def test_an_index_is_reused_until_its_shard_changes(tmp_path, builds):
    folder = tmp_path / "set"
    write_tar(folder / "0.tar", pair_members(2))
    path = write_tar(folder / "1.tar", pair_members(2, first=2))
    expected = [f"caption {number}" for number in range(4)]
    assert captions(folder) == captions(folder) == expected
    assert sorted(builds) == ["0.tar", "1.tar"]

    time = path.stat().st_mtime_ns
    write_tar(path, pair_members(2, first=6))
    os.utime(path, ns=(time, time + 1))
    assert captions(folder) == [*expected[:2], "caption 6", "caption 7"]
    assert builds[2:] == ["1.tar"]
    assert len(index_files(folder)) == 2, "the index of the earlier state is removed"


def test_a_damaged_index_is_rebuilt(tmp_path, builds):
    folder = tmp_path / "set"
    write_tar(folder / "0.tar", pair_members(3))
    expected = captions(folder)
    (path,) = index_files(folder)
    content = path.read_bytes()
    damaged = [b"", content[:10], content[:-1], content + b"x", b"other" + content[5:]]
    damaged += [flipped(content, place) for place in (13, 30, 200)]
    for count, broken in enumerate(damaged, start=2):
        path.write_bytes(broken)
        assert captions(folder) == expected
        assert len(builds) == count
        assert path.read_bytes() == content


def test_damage_behind_the_header_is_noticed_when_it_is_read(tmp_path, builds):
    folder = tmp_path / "set"
    write_tar(folder / "0.tar", pair_members(3))
    captions(folder)
    (path,) = index_files(folder)
    content = path.read_bytes()
    texts = content.index(b'["000000000"')
    for place in (texts, texts + 20, texts - 1, texts - 10):
        path.write_bytes(flipped(content, place))
        with pytest.raises(ChangedFileError, match="is damaged: delete it"):
            captions(folder)


def test_sizes_and_metadata_stand_in_columns(tmp_path):
    members = [
        ("a.jpg", encode(picture(0, width=48, height=40))),
        ("a.txt", b"read from the header"),
        ("b.jpg", b"not a picture"),
        ("b.txt", b"as listed"),
        ("b.json", b'{"width": 7, "height": 5, "similarity": 0.25, "NSFW": "UNLIKELY", "error": null, "nan": NaN}'),
        ("c.jpg", b"not a picture"),
        ("c.txt", b"unknown"),
        ("c.json", b'{"similarity": 1, "NSFW": "NSFW", "url": "' + b"x" * 65 + b'", "prose": "' + b"x " * 40 + b'"}'),
    ]
    index = open_shard_index(write_tar(tmp_path / "0.tar", members), TarFormat())
    for name, values in {
        "width": [48, 7, 0],
        "height": [40, 5, 0],
        "caption_characters": [20, 9, 7],
        "similarity": [np.nan, 0.25, 1],
    }.items():
        assert index.column(name).kind == "number"
        np.testing.assert_array_equal(index.column(name).values, np.array(values, np.float32))
    kind, places, words = index.column("NSFW")
    assert (kind, places.tolist(), words) == ("word", [2, 1, 0], ("NSFW", "UNLIKELY"))
    kind, hashes, _ = index.column("url")
    assert (kind, hashes.tolist()) == ("hash", [0, 0, hash_text("x" * 65)])
    assert index.column("key").values.tolist() == [hash_text(key) for key in "abc"]
    assert index.column("error") is index.column("nan") is index.column("prose") is None


def test_damage_in_a_column_is_noticed(tmp_path, builds):
    index = open_shard_index(write_tar(tmp_path / "0.tar", pair_members(3)), TarFormat())
    content = index.file.path.read_bytes()
    index.file.path.write_bytes(flipped(content, index.header["columns"]["key"]["offset"]))
    with pytest.raises(ChangedFileError, match="is damaged: delete it"):
        index.column("key")
    assert index.column("width").values.tolist() == [48] * 3


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_the_users_cache_is_used_where_the_folder_is_read_only(tmp_path, builds, monkeypatch):
    folder = tmp_path / "set"
    write_tar(folder / "0.tar", pair_members(2))
    # Nothing can be made under a file, not even by root.
    (folder / ".clipa_index").write_bytes(b"")
    assert captions(folder) == captions(folder) == ["caption 0", "caption 1"]
    assert builds == ["0.tar"]
    assert len(list((tmp_path / "cache" / "clipa_eqx" / "index").rglob("0.tar.tar-caption.*"))) == 1

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "0.tar"))
    with pytest.raises(OSError, match="XDG_CACHE_HOME"):
        captions(folder)


def test_many_at_once_build_one_index(tmp_path, builds):
    path = write_tar(tmp_path / "set" / "0.tar", pair_members(2))
    with ThreadPoolExecutor(8) as threads:
        indexes = list(threads.map(lambda _: open_shard_index(path, TarFormat()), range(32)))
    assert {index.pair(1).captions for index in indexes} == {("caption 1",)}
    assert len(index_files(tmp_path / "set")) == 1
    assert len(builds) >= 1


def test_a_swapped_index_cannot_swap_captions(tmp_path, builds):
    first = write_tar(tmp_path / "set" / "0.tar", pair_members(2))
    second = write_tar(tmp_path / "set" / "1.tar", pair_members(2, first=1))
    os.utime(first, ns=(5, 5))
    os.utime(second, ns=(6, 6))
    captions(tmp_path / "set")
    one, two = index_files(tmp_path / "set")
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert captions(tmp_path / "set") == ["caption 0", "caption 1", "caption 1", "caption 2"]
    assert len(builds) == 4
