"""The command as a user types it: help, listing, and what bad input gets."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary

from clipa_eqx.cli import main
from clipa_eqx.recipes import recipes


COMMANDS = [
    "",
    "demo",
    "train",
    "evaluate",
    "export",
    "import",
    "verify",
    "data",
    "data make-world",
    "data train-tokenizer",
    "data index",
    "data inspect",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_and_imports_no_jax(command):
    code = (
        "import sys; from clipa_eqx.cli import main\n"
        f"try: main({[*command.split(), '--help']!r})\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'jax', 'equinox', 'grain', 'numpy', 'orbax', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_help_is_quick():
    """Under 1.5 s, interpreter included; of processor time, since the machine may be busy with other tests."""

    def spent():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-m", "clipa_eqx", "train", "--help"], capture_output=True, check=True)
    assert spent() - before < 1.5


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--no-such-flag"], ["data", "fly"]])
def test_unknown_words_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err or captured.out


def test_list_shows_every_recipe(capsys):
    assert main(["train", "--list", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["recipes"]
    assert {row["recipe"] for row in rows} == set(recipes)
    big = [row for row in rows if "bigg14" in row["recipe"] and row["image_size"] == 84]
    assert big
    assert all(2.4e9 < row["parameters"] < 2.6e9 for row in big)
    assert all(row["image_tokens"] == 37 and row["text_tokens"] == 8 for row in big)
    table = "\n".join(out.splitlines()[:-1])
    assert all(f"{name} " in table for name in recipes)


def _config(data, path, **fields):
    return str(write_config(path / "config.json", tiny_run(data, **fields)))


def _stage(data, **fields):
    run = tiny_run(data)
    return (dataclasses.replace(run.stages[0], **fields), run.stages[1])


def _text(path, content):
    path.write_text(content)
    return str(path)


# What is wrong, the arguments that make it so, and what the message must say.
FAULTS = {
    "unknown recipe": (lambda data, tmp: ["train", "clipa-l17"], ["clipa-l17", "clipa-l16"]),
    "neither recipe nor config": (lambda data, tmp: ["train"], ["--list"]),
    "scale that is no number": (lambda data, tmp: ["train", "world-tiny", "--scale", "tiny"], ["--scale", "1/256"]),
    "missing config file": (lambda data, tmp: ["train", "--config", str(tmp / "none.json")], ["none.json"]),
    "config that is not JSON": (
        lambda data, tmp: ["train", "--config", _text(tmp / "bad.json", "{")],
        ["bad.json", "not a JSON file"],
    ),
    "unknown field": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "stages.few.pool=3"],
        ["stages.few.pool", "batch_size"],
    ),
    "batch that does not split": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "stages.few.batch_size=12"],
        ["batch_size=12", "8 devices", "8 and 16"],
    ),
    "more patches than there are": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "stages.few.keep_patches=10"],
        ["keep_patches=10", "9 patches"],
    ),
    "patch that does not divide the image": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "stages.few.image_size=25"],
        ["image_size=25", "24 and 32"],
    ),
    "micro-batch that does not divide the batch": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "stages.few.micro_batch=24"],
        ["micro_batch=24", "batch_size=16"],
    ),
    "layout that does not divide a weight": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "shard=all", "model.text.width=20"],
        ["shard='all'", "8 devices", "model.text.width=20"],
    ),
    "rates of arrays that are not there": (
        lambda data, tmp: [
            "train", "--config", _config(data, tmp), "--set", 'stages.all.optim.rates=[{"pattern": "visoin.*"}]',
        ],
        ["visoin.*", "vision.patch.weight"],
    ),
    "steps to profile that are no range": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--profile-steps", "10"], ["FIRST:STOP", "'10'"],
    ),
    "steps to profile that the run has not": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--profile-steps", "9:12"], ["9:12", "10 steps"],
    ),
    "several faults at once": (
        lambda data, tmp: [
            "train", "--config", _config(data, tmp),
            "--set", "stages.few.batch_size=12", "stages.all.image_size=25", "stages.all.samples=0",
        ],
        ["batch_size=12", "image_size=25", "samples=0"],
    ),
    "missing data": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", f"data.train={tmp / 'nowhere'}"],
        ["nowhere"],
    ),
    "missing vocabulary": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", f"data.tokenizer={tmp / 'none.txt'}"],
        ["none.txt"],
    ),
    "vocabulary larger than the table": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", "model.text.vocab_size=10"],
        ["13 entries|entries", "vocab_size=10"],
    ),
    "folder without pairs": (
        lambda data, tmp: ["train", "--config", _config(data, tmp), "--set", f"data.train={_empty(tmp)}"],
        ["empty"],
    ),
    "run that is not finished": (lambda data, tmp: ["evaluate", str(tmp), "--retrieval", "x"], ["config.json"]),
    "nothing to measure": (lambda data, tmp: ["evaluate", str(tmp)], ["--classification"]),
}  # fmt: skip


def _empty(tmp):
    folder = tmp / "empty"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_gets_one_message_and_writes_nothing(fault, data, tmp_path, capsys):
    make, parts = FAULTS[fault]
    arguments = make(data, tmp_path)
    run_dir = tmp_path / "run"
    if arguments[0] == "train":
        arguments += ["--run-dir", str(run_dir)]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("clipa: ")
    assert "Traceback" not in err
    for part in parts:
        assert any(option in err for option in part.split("|")), err
    assert not run_dir.exists()


def test_a_directory_of_another_run_is_refused(data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_config(run_dir / "config.json", tiny_run(data, seed=1))
    before = (run_dir / "config.json").read_bytes()
    assert main(["train", "--config", _config(data, tmp_path), "--run-dir", str(run_dir)]) == 1
    err = capsys.readouterr().err
    assert "another config" in err
    assert "seed: 1 there, 0 here" in err
    assert (run_dir / "config.json").read_bytes() == before
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]


def test_a_directory_of_something_else_is_refused(data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "thesis.tex").write_text("all of it")
    assert main(["train", "--config", _config(data, tmp_path), "--run-dir", str(run_dir)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in run_dir.iterdir()] == ["thesis.tex"]


def test_dry_run_checks_and_writes_nothing(data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["train", "--config", _config(data, tmp_path), "--run-dir", str(run_dir), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checked"] is True
    assert not run_dir.exists()


def test_recipe_is_scaled_by_the_flag(tmp_path, capsys):
    assert main(["train", "clipa-v2-h14-84", "--scale", "1/256", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recipe"] == "clipa-v2-h14-84"


def test_python_dash_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "clipa_eqx", "train", "nothing"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nothing" in done.stderr
