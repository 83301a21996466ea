"""The script for a GPU, rehearsed on the CPU at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
RUN = ROOT / "benchmarks" / "gpu" / "run.py"


def run(out, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, RUN, "--out", out, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return done, {record["part"]: record for record in records}


def test_parts_that_fail_or_hang_end_no_other(tmp_path):
    more = [
        {"name": "too_slow", "script": "ceilings.py", "ready_s": 0.2},
        {"name": "unknown_field", "script": "step.py", "options": {"case": "b16", "stage": {"speed": 9}}},
    ]
    (tmp_path / "more.json").write_text(json.dumps(more))
    names = ["b16_unroll", "unknown_field", "too_slow"]
    done, records = run(tmp_path / "out", "--tiny", "--more", tmp_path / "more.json", "--only", *names)
    assert done.returncode == 0, done.stderr
    assert set(records) == {"check", *names}
    step = records["b16_unroll"]
    assert 0 < step["ms_least"] <= step["ms"] <= step["ms_most"]
    assert step["ms_queued"] > 0
    assert step["plan_gib"] > 0
    # It trains on one batch again and again.
    assert step["last_loss"] < step["first_loss"]
    assert "speed" in records["unknown_field"]["stderr"]
    assert "after 0 s" in records["too_slow"]["error"]
    assert "unknown_field: FAILED" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.jsonl", "log.txt", "programs.tar"}


def test_without_a_gpu_it_says_why_and_ends(tmp_path):
    done, records = run(tmp_path)
    assert done.returncode == 2
    assert set(records) == {"check"}
    assert "JAX does not compute on a GPU here" in done.stdout


def test_used_up_time_is_said_of_each_part(tmp_path):
    done, records = run(tmp_path, "--tiny", "--budget_s", "20", "--only", "ceilings", "loader")
    assert done.returncode == 0, done.stderr
    assert all("Not begun" in records[name]["error"] for name in ("ceilings", "loader"))


def test_names_are_distinct_and_checked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RUN.parent)
    from _parts import waves

    names = [part.name for wave in waves(None, [], tiny=False) for part in wave]
    assert len(names) == len(set(names))
    command = [sys.executable, RUN, "--out", tmp_path, "--tiny", "--only", "b17"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "There is no part b17" in done.stderr
