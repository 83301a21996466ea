"""What README tells a newcomer to type works."""

import dataclasses
import re
import shlex
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_shards, write_vocabulary

from clipa_eqx.cli import main
from clipa_eqx.interop import export_open_clip, load_pretrained
from clipa_eqx.train import train


README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line.startswith("clipa ")
]


def test_the_researchers_page_is_short_and_runs():
    (code,) = PYTHON
    body = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(body) <= 12
    scope = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "README.md", "exec"), scope)
    assert 0 < float(scope["value"]) < 100
    norms = [float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(scope["gradient"])]
    assert all(np.isfinite(norms))
    assert sum(norm > 0 for norm in norms) > 0.9 * len(norms)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with all that the commands name: shards, sets, a finished run."""
    directory = tmp_path_factory.mktemp("workplace")
    write_shards(directory / "shards")
    write_shards(directory / "coco" / "test", pairs=8, shards=1)
    write_shards(directory / "train", pairs=32)
    write_vocabulary(directory / "vocab.txt")
    for name in ("tench", "goldfish"):
        (directory / "imagenet" / name).mkdir(parents=True)
        for number, picture in enumerate(_pictures(directory / "coco" / "test" / "00000.tar")):
            (directory / "imagenet" / name / f"{number}.jpg").write_bytes(picture)
    run = tiny_run(directory)
    run = dataclasses.replace(run, stages=run.stages[1:])
    train(run, directory / "runs" / "b16", console=False)
    export_open_clip(load_pretrained(directory / "runs" / "b16"), directory / "weights")
    return directory


def _pictures(path):
    with tarfile.open(path) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]


def test_every_command_runs(workplace, monkeypatch, capsys):
    """In the order of the page; training itself is only checked (`--dry-run`): a B/16 takes a cluster."""
    monkeypatch.chdir(workplace)
    assert {command[0] for command in COMMANDS} == {"train", "data", "evaluate", "export", "verify"}
    for command in COMMANDS:
        checked = [*command, "--dry-run"] if command[0] == "train" and "--list" not in command else command
        assert main(checked) == 0, (command, capsys.readouterr().err)


def test_make_targets_named_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
