"""Shards behind HTTP and in a bucket are read as those on a disk are; what fails ends with a clear error."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys

import pytest
from data_files import (
    encode,
    NumberTexts,
    pair_members,
    picture,
    write_arrow,
    write_examples,
    write_parquet,
    write_tar,
)
from remote_servers import serve

from clipa_eqx.config import DataConfig, FilterConfig, RemoteConfig, StageConfig
from clipa_eqx.data import index_pairs, open_pairs, training_batches
from clipa_eqx.data.io import _remote
from clipa_eqx.data.io._range_cache import range_cache, RangeCache
from clipa_eqx.data.io._remote import RemoteError


boto3 = pytest.importorskip("boto3")
fsspec = pytest.importorskip("fsspec")
moto_server = pytest.importorskip("moto.server")

QUICK = RemoteConfig(timeout_s=1.0, attempts=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_remote, "_FIRST_PAUSE_S", 0.01)
    range_cache.cache_clear()


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / "set" / f"{shard:05d}.tar", pair_members(4, first=4 * shard))
    return tmp_path / "set"


def open_at(path, remote=QUICK, **options):
    return open_pairs(DataConfig(train=str(path), remote=remote, **options))


def read_all(pairs):
    return {pair.captions[0]: pair.image for pair in map(pairs.__getitem__, range(len(pairs)))}


EXPECTED = {f"caption {number}": encode(picture(number)) for number in range(12)}


def test_http_reads_like_a_disk(folder, monkeypatch):
    monkeypatch.setattr(_remote, "_SCAN_BYTES", 5000)
    local = open_at(folder)
    with serve(folder) as server:
        pairs = open_at(f"{server.url}/{{00000..00002}}.tar")
        assert read_all(pairs) == read_all(local) == EXPECTED
        assert (pairs.fingerprint, pairs.skipped, pairs[5].key) == (local.fingerprint, {}, local[5].key)
        assert open_at(f"{server.url}/00001.tar")[0].key == "00001.tar/000000004"
        server.requests.clear()
        again = open_at(f"{server.url}/{{00000..00002}}.tar")
        assert read_all(again) == EXPECTED
        assert {command for command, _, _ in server.requests} == {"HEAD"}, "indexes and images lie in the cache"
        (folder / "00000.tar").unlink()
        with pytest.raises(FileNotFoundError, match=r"There is no http.*00000\.tar"):
            open_at(f"{server.url}/{{00000..00002}}.tar")
    # Nothing is written into a folder that is served.
    assert sorted(path.name for path in folder.iterdir()) == [".clipa_index", "00001.tar", "00002.tar"]


def test_every_kind_of_shard_is_read_over_http(tmp_path):
    rows = [{"jpg": image, "txt": caption} for caption, image in EXPECTED.items()]
    for name, write in (("0.tfrecord", write_examples), ("0.parquet", write_parquet), ("0.arrow", write_arrow)):
        write(tmp_path / name, rows)
        with serve(tmp_path) as server:
            pairs = open_at(f"{server.url}/{name}")
            assert (read_all(pairs), pairs.skipped) == (EXPECTED, {})
    with pytest.raises(ValueError, match="layout array-record is not read over a network"):
        open_at("http://localhost/0.array_record")


def test_an_image_is_one_request_for_its_bytes(folder):
    with serve(folder) as server:
        pairs = open_at(f"{server.url}/00000.tar", dataclasses.replace(QUICK, cache_gib=0))
        server.requests.clear()
        image = pairs[2].image
        ((command, _, bounds),) = server.requests
        first, last = map(int, bounds.removeprefix("bytes=").split("-"))
        assert (command, last - first + 1) == ("GET", len(image))
        assert pairs[2].image == image
        assert len(server.requests) == 2, "nothing is kept"


def test_a_shard_that_was_replaced_is_indexed_and_read_anew(folder):
    with serve(folder) as server:
        before = read_all(open_at(f"{server.url}/00000.tar"))
        path = folder / "00000.tar"
        time = path.stat().st_mtime_ns
        write_tar(path, pair_members(4, first=100))
        os.utime(path, ns=(time, time + 1_000_000))
        after = read_all(open_at(f"{server.url}/00000.tar"))
    assert list(before) == [f"caption {number}" for number in range(4)]
    assert after == {f"caption {number}": encode(picture(number)) for number in range(100, 104)}


@pytest.mark.parametrize("mode", ["cut", "busy", "slow"])
def test_trouble_that_passes_is_waited_for(folder, mode):
    gets = []
    for troubles in (0, 2):
        remote = dataclasses.replace(QUICK, cache_gib=0)
        with serve(folder, mode, troubles=troubles, pause_s=2.5) as server:
            assert read_all(open_at(f"{server.url}/{{00000..00002}}.tar", remote)) == EXPECTED
            gets.append(sum(command == "GET" for command, _, _ in server.requests))
    assert gets[1] == gets[0] + 2


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("cut", r"00000\.tar cannot be read: .*3 of 3 attempts, 1 s each"),
        ("busy", r"00000\.tar cannot be read: .*503.*3 of 3 attempts"),
        ("slow", r"00000\.tar cannot be read: .*Timeout.*3 of 3 attempts"),
        ("whole", r"sends the whole file when asked for a part of it.*copy the shards"),
    ],
)
def test_trouble_that_stays_ends_with_an_error(folder, mode, message):
    with serve(folder, mode, troubles=1000, pause_s=2.5) as server, pytest.raises(RemoteError, match=message):
        open_at(f"{server.url}/00000.tar")[0]


def test_a_server_that_goes_ends_the_training_instead_of_skipping(folder):
    data = DataConfig(caption_tokens=4, remote=QUICK, threads=1, prefetch=1)
    with serve(folder) as server:
        data = dataclasses.replace(data, train=f"{server.url}/{{00000..00002}}.tar")
        batches = training_batches(
            open_pairs(data), NumberTexts(), data, StageConfig(batch_size=4, image_size=16), seed=0
        )
        assert next(batches).faults == ()
    with pytest.raises(RemoteError, match=r"cannot be read: .*3 of 3 attempts"):
        [next(batches) for _ in range(5)]
    batches.close()


def test_what_cannot_be_listed_or_read(folder):
    with serve(folder) as server:
        for path in (f"{server.url}/", f"{server.url}/*.tar"):
            with pytest.raises(ValueError, match=r"cannot be listed; name them by a range"):
                open_at(path)
        with pytest.raises(ValueError, match="layout csv is not read over a network"):
            open_at(f"{server.url}/a.csv", layout="csv")
    with pytest.raises(RemoteError, match="cannot be read.*Check address"):
        open_at(f"{server.url}/00000.tar")


def test_the_cache_stays_within_its_size(tmp_path):
    cache = RangeCache(tmp_path / "ranges", 64 * 6400)
    for number in range(2000):
        cache.put("file", number, b"%03d" % (number % 1000) * 100)
    kept = [path for path in (tmp_path / "ranges").rglob("*") if path.is_file()]
    assert 0.7 * 64 * 6400 < sum(path.stat().st_size for path in kept) <= 64 * 6400
    found = [number for number in range(2000) if cache.get("file", number, 300) is not None]
    assert all(cache.get("file", number, 300) == b"%03d" % (number % 1000) * 100 for number in found)
    assert len(found) == len(kept)
    assert sum(found) / len(found) > 1100, "the oldest go first"
    cache.put("file", 5000, bytes(6401))
    assert cache.get("file", 5000, 6401) is None, "larger than a folder's share"


def _use_cache(folder, seed):
    cache = RangeCache(folder, 64 * 6400)
    for number in range(600):
        place = (number * 7919 + seed * 104729) % 2000
        content = b"%04d" % place * 75
        found = cache.get("file", place, 300)
        if found is None:
            cache.put("file", place, content)
        elif found != content:
            raise ValueError(f"range {place} holds {found[:8]!r}")


def test_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(_use_cache, [(tmp_path / "ranges", seed) for seed in range(3)])
    files = [path for path in (tmp_path / "ranges").rglob("*") if path.is_file()]
    assert not any(path.name.startswith(".") for path in files)
    # Each of the other two may have written a 32nd of the size unseen.
    assert sum(path.stat().st_size for path in files) <= 64 * 6400 * (1 + 2 / 32) + 64 * 2 * 300


@pytest.fixture
def bucket(folder, monkeypatch):
    """The set in an S3 bucket, and the environment that leads there."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="pairs")
    for path in sorted(folder.glob("*.tar")):
        client.upload_file(str(path), "pairs", f"train/{path.name}")
    # Both remember the endpoint of the test before.
    _remote._file_system.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://pairs/train"
    server.stop()


def test_a_bucket_reads_like_a_disk(bucket, folder):
    local = open_at(folder)
    for path in (bucket, f"{bucket}/*.tar", f"{bucket}/{{00000..00002}}.tar"):
        pairs = open_at(path, RemoteConfig())
        assert read_all(pairs) == EXPECTED
        assert pairs.fingerprint == local.fingerprint
    mixed = open_pairs(DataConfig(mixture=(f"{bucket}/00000.tar", str(folder / "00001.tar"))))
    assert len(read_all(mixed)) == 8
    filtered = open_at(bucket, filter=FilterConfig(min_caption_characters=10))
    assert list(read_all(filtered)) == ["caption 10", "caption 11"]
    for path in (f"{bucket}/00009.tar", f"{bucket}/none/*.tar", "s3://no-such-bucket/*.tar"):
        with pytest.raises(FileNotFoundError, match="There is no"):
            open_at(path, QUICK)


def test_a_bucket_is_indexed_by_processes(bucket):
    data = DataConfig(train=bucket)
    done = []
    pairs, built = index_pairs(data, processes=2, report=lambda *progress: done.append(progress))
    assert (len(pairs), built, done) == (12, 3, [(1, 3), (2, 3), (3, 3)])
    assert read_all(pairs) == EXPECTED


def test_nothing_of_the_network_is_imported_for_files(tmp_path):
    code = "import sys; import clipa_eqx.data; sys.exit(any(name in sys.modules for name in ('fsspec', 'aiohttp')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
