"""Indexes built by several processes: whole, named when one fails, and kept when all is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from data_files import pair_members, write_tar

from clipa_eqx.cli._main import main
from clipa_eqx.config import DataConfig
from clipa_eqx.data import _shards, index_pairs, open_pairs
from clipa_eqx.data._index import load_indexes
from clipa_eqx.data._indexing import build_indexes
from clipa_eqx.data._tar_format import TarFormat


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
    with pytest.raises(
        OSError, match=r"2 of 5 shards could not be indexed, the first: .*deadly.tar: .* died with exit code -9"
    ):
        build_indexes([deadly, faulty, *shards], DeadlyFormat(), processes=1, report=done.append)
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
    assert [result["indexes_built"] for result in results] == [2, 2, 1, 0]
    assert [result["pairs"] for result in results] == [4, 4, 2, 10]
    for part in ("3/3", "1", "-1/3", "0/0"):
        assert main(["data", "index", str(tmp_path), f"--shard={part}"]) == 1
        assert "--shard is written i/n with i from 0" in capsys.readouterr().err
    assert main(["data", "index", str(tmp_path), "--shard=2/6"]) == 1
    assert "5 shards do not split into 6 parts" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_started_again_it_goes_on(tmp_path, number):
    make_set(tmp_path, 60, pairs=150)
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
    assert 0 < len(kept) < 60
    pairs, fresh = index_pairs(DataConfig(train=str(tmp_path)), processes=1, report=lambda done, total: None)
    assert (len(pairs), fresh) == (60 * 150, 60 - len(kept))
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
