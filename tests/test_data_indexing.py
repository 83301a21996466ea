"""Indexes built by several processes: whole, named when one fails, and kept when all is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from data_files import pair_members, write_tar

from clipa_eqx.cli._main import main
from clipa_eqx.config import DataConfig
from clipa_eqx.data import (
    Caption,
    index_pairs,
    LiveTexts,
    open_pairs,
    open_texts,
    train_tokenizer,
    word_classifier,
)
from clipa_eqx.data.formats._tar_format import TarFormat
from clipa_eqx.data.index import _shards
from clipa_eqx.data.index._index import load_indexes
from clipa_eqx.data.index._indexing import build_indexes, ShardWork


@dataclass(frozen=True)
class DeadlyFormat(TarFormat):
    """Reading the shard `deadly.tar` kills the process that reads it; reading `faulty.tar` fails."""

    def scan(self, shard, skipped):
        if shard.path.name == "deadly.tar":
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.path.name == "faulty.tar":
            raise OSError("disk on fire")
        yield from super().scan(shard, skipped)


def make_set(folder, shards, pairs=2):
    return [
        write_tar(folder / f"{shard:03d}.tar", pair_members(pairs, first=shard * pairs, image=b"x"))
        for shard in range(shards)
    ]


def test_a_shard_that_fails_or_kills_its_reader_is_named_and_the_others_go_on(tmp_path):
    shards = make_set(tmp_path, 3)
    deadly = write_tar(tmp_path / "deadly.tar", pair_members(1))
    faulty = write_tar(tmp_path / "faulty.tar", pair_members(1))
    done = []
    message = r"2 of 5 shards could not be indexed, the first: .*deadly.tar: .* died with exit code -9"
    with pytest.raises(OSError, match=message):
        build_indexes([deadly, faulty, *shards], ShardWork(DeadlyFormat()), processes=1, report=done.append)
    assert done == [1, 2, 3, 4, 5]
    found = load_indexes([deadly, *shards, faulty], TarFormat())
    assert [index is not None for index in found] == [False, True, True, True, False]


def test_parts_of_an_array_job_share_the_shards(tmp_path, capsys):
    make_set(tmp_path, 5)
    results = []
    for part in ("0/3", "1/3", "2/3", "0/1"):
        assert main(["data", "index", str(tmp_path), "--shard", part, "--processes", "1", "--json"]) == 0
        output = capsys.readouterr()
        results.append(json.loads(output.out.splitlines()[-1]))
        assert ("shards indexed" in output.err) == (part != "0/1")
    assert [result["shards_built"] for result in results] == [2, 2, 1, 0]
    assert [result["pairs"] for result in results] == [4, 4, 2, 10]
    for part in ("3/3", "1", "-1/3", "0/0"):
        assert main(["data", "index", str(tmp_path), f"--shard={part}"]) == 1
        assert "--shard is written i/n with i from 0" in capsys.readouterr().err
    assert main(["data", "index", str(tmp_path), "--shard=2/6"]) == 1
    assert "5 shards do not split into 6 parts" in capsys.readouterr().err


def test_tokens_are_kept_beside_the_index(tmp_path, capsys):
    make_set(tmp_path / "set", 3)
    data = DataConfig(train=str(tmp_path / "set"))
    tokenizer = train_tokenizer(["caption number 1 2 3 4 5"] * 5, vocab_size=100)
    tokenizer.save(tmp_path / "vocabulary")
    index_pairs(data, processes=1, report=lambda done, total: None)
    arguments = ["data", "index", data.train, "--tokenizer", str(tmp_path / "vocabulary"), "--processes", "1", "--json"]
    for expected in (3, 0):
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["shards_built"] == expected
    assert len(list((tmp_path / "set" / ".clipa_index").glob("*.text"))) == 3
    pairs = open_pairs(data)
    kept = open_texts(pairs, tokenizer, data)
    live = LiveTexts(tokenizer, word_classifier(tokenizer, data.word_class))
    captions = [Caption(place, 0, pairs.captions(place)[0]) for place in range(6)]
    for found, expected in zip(kept.read(captions, 8), live.read(captions, 8), strict=True):
        assert (found == expected).all()
    assert type(kept) is not type(live)
    # A mixture takes each set's own.
    mixed = open_pairs(DataConfig(mixture=(f"{data.train}/000.tar", f"{data.train}/002.tar")))
    captions = [Caption(place, 0, mixed.captions(place)[0]) for place in (3, 0, 2)]
    for found, expected in zip(
        open_texts(mixed, tokenizer, data).read(captions, 8), live.read(captions, 8), strict=True
    ):
        assert (found == expected).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_started_again_it_goes_on(tmp_path, number):
    (first,) = make_set(tmp_path, 1, pairs=300)
    for shard in range(1, 80):
        shutil.copy(first, tmp_path / f"{shard:03d}.tar")
    command = [sys.executable, "-m", "clipa_eqx", "data", "index", str(tmp_path), "--processes", "1", "--json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not (kept := built(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert ("clipa: interrupted" in error) == (number == signal.SIGINT)
    # A worker whose parent is gone ends with the shard that it is at.
    while len(kept) != len(kept := built(tmp_path)):
        time.sleep(0.1)
    assert 0 < len(kept) < 80
    pairs, fresh = index_pairs(DataConfig(train=str(tmp_path)), processes=1, report=lambda done, total: None)
    assert (len(pairs), fresh) == (80 * 300, 80 - len(kept))
    assert [path.name for path in (tmp_path / ".clipa_index").iterdir() if path.name.startswith(".")] == []


def built(folder):
    """Finished index files."""
    return list(folder.glob(".clipa_index/*.tar.*"))


def test_a_set_without_indexes_hints_at_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(_shards, "_MANY", 3)
    make_set(tmp_path, 3)
    with pytest.warns(UserWarning, match="3 of 3 shards have no index yet.*clipa data index"):
        open_pairs(DataConfig(train=str(tmp_path)))
    open_pairs(DataConfig(train=str(tmp_path)))
