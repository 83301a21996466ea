"""What README and the documentation tell people to type works."""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
import tarfile
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_config, write_shards, write_vocabulary

from clipa_eqx import make_clip
from clipa_eqx.cli import main
from clipa_eqx.cli._main import _parse
from clipa_eqx.data import load_tokenizer
from clipa_eqx.interop import export_open_clip, Preprocess, Pretrained


ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# What stands for something that the reader has.
STANDS_FOR = {"RECIPE": "clipa-b16-112", "NAME": "A100-80GB", "N": "8", "RUN": "runs/b16", "SOURCE": "shards/"}
# Added to what a page leaves open, or leaves to the reader.
SETTING = ("--init-from", "weights/", "--data.train", "shards/", "--run-dir", "runs/set")
DATA = ("--data.tokenizer", "vocab.txt", "--run-dir", "runs/more")
# What is only parsed, and why.
PARSED = {
    "import hf-hub:": "a network",
    "--processes.coordinator host0": "two hosts; test_distributed.py starts several processes",
    "--against open_clip": "PyTorch; test_bridge_open_clip.py compares the two",
    "plan ": "minutes of compilation; test_planning.py compiles small ones",
    "demo": "minutes; test_bridge_demo.py runs it",
    "mae_vit_base.pth": "PyTorch to read a .pth; test_interop_image_tower.py reads them",
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def lines(page):
    """The command lines of a page, continued ones joined; comments dropped."""
    for code in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def named(page):
    """The commands within its sentences."""
    return [shlex.split(code) for code in re.findall(r"`(clipa [a-z][^`]*)`", page.read_text().replace("\n", " "))]


def filled(words):
    """The command with something in place of what stands for the reader's own."""
    words = [STANDS_FOR.get(word, word) for word in words]
    if words[0].startswith("--set"):
        return ["train", *SETTING, *words]
    words = words[1:]
    if "convert" in words:
        words = [{"shards/": "converted/", "8": "2"}.get(word, word) for word in words]
    words = [word.replace("/2000", "/2") for word in words]
    if "..." in words:
        words.remove("...")
    if words[0] == "train" and "--data.train" not in words and "--data.mixture" not in words and "--list" not in words:
        words += ["--data.train", "shards/"]
    if words[0] == "export" and "--to" not in words:
        words += ["--to", "open_clip", "--out", "exported/"]
    if words[0] == "train" and "--run-dir" not in words and "--list" not in words:
        words += DATA
    return words


def test_the_researchers_page_is_short_and_runs():
    (code,) = blocks(README, "python")
    body = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(body) <= 12
    scope = _run_blocks(README)
    assert 0 < float(scope["value"]) < 100
    norms = [float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(scope["gradient"])]
    assert all(np.isfinite(norms))
    assert sum(norm > 0 for norm in norms) > 0.9 * len(norms)


def _run_blocks(page):
    """The Python of a page, in its order, each block with the names of those before it."""
    scope = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with all that the commands name: shards, sets, pictures, a finished run, exported weights."""
    directory = tmp_path_factory.mktemp("workplace")
    for name in ("train", "shards", "laion", "cc12m"):
        _write_scored(directory / name)
    write_shards(directory / "coco" / "test", pairs=8, shards=1)
    write_vocabulary(directory / "vocab.txt")
    pictures = _pictures(directory / "coco" / "test" / "00000.tar")
    for folder in ("imagenet/tench", "imagenet/goldfish", "pictures", "table"):
        (directory / folder).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            (directory / folder / f"{number}.jpg").write_bytes(picture)
            if folder == "table":
                (directory / folder / f"{number}.txt").write_text("a red half")
    stage = dataclasses.replace(tiny_run(directory).stages[1], name="tune-224", samples=32, ema_decay=0.5)
    run = tiny_run(directory, stages=(stage,), init_from="weights/")
    model, tokenizer = make_clip(run.model, key=jax.random.key(0)), load_tokenizer(directory / "vocab.txt")
    export_open_clip(Pretrained(model, run.model, Preprocess(32, "crop", "bilinear"), tokenizer), directory / "weights")
    shutil.copytree(directory / "weights", directory / "exported")
    write_config(directory / "fine-tune.json", run)
    # The run that the other commands name is the one that a page starts from Python.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        _run_blocks(ROOT / "docs" / "training.md")
    for name in ("b16", "few"):
        shutil.copytree(directory / "runs" / "from-python", directory / "runs" / name)
    return directory


def _write_scored(directory):
    """Shards whose pairs have scores to filter by."""
    for path in sorted(write_shards(directory, pairs=32, shards=1).glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                if name.endswith(".json"):
                    scores = {"similarity": 0.3, "punsafe": 0.1, "LANGUAGE": "en", "sha256": name}
                    content = json.dumps(json.loads(content) | scores).encode()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _pictures(path):
    with tarfile.open(path) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(workplace, monkeypatch, capsys, page):
    """In the order of the page; training itself is only checked (`--dry-run`): a B/16 takes a cluster."""
    monkeypatch.chdir(workplace)
    makefile, project = (ROOT / "Makefile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for words in lines(page):
        said = shlex.join(words)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), said
        elif words[:2] == ["pip", "install"]:
            assert set(re.findall(r"\[(\w+)\]", said)) <= set(project["optional-dependencies"]), said
        else:
            assert words[0] in ("clipa", "--set"), said
            if any(part in said for part in PARSED):
                _parse(filled(words))
            else:
                checked = ["--dry-run"] if "train" in filled(words)[:1] and "--list" not in words else []
                assert main([*filled(words), *checked]) == 0, (said, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_in_a_sentence_exists(page, capsys):
    """One with its arguments is parsed; a bare name answers `--help`."""
    for words in named(page):
        whole = any(word.startswith("-") or "/" in word for word in words)
        with contextlib.nullcontext() if whole else pytest.raises(SystemExit, match="^0$"):
            _parse(filled(words) if whole else [*words[1:], "--help"])


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_every_python_block_runs(workplace, monkeypatch, page):
    """Those of training.md ran when the workplace was made."""
    monkeypatch.chdir(workplace)
    if page.name == "training.md":
        assert (workplace / "runs" / "from-python" / "model.safetensors").is_file()
        return
    scope = _run_blocks(page)
    if page.name == "notebook.md":
        ten = [line for line in blocks(page, "python")[0].splitlines() if line and "import" not in line]
        assert len(ten) <= 10
        assert scope["similarity"].shape == (8, 2)
        assert np.abs(scope["similarity"]).max() <= 1.0001


def test_what_is_only_parsed_stands_on_a_page():
    said = [shlex.join(words) for page in PAGES for words in (*lines(page), *named(page))]
    for part in PARSED:
        assert any(part in command for command in said), part


def test_make_targets_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in set(re.findall(r"\bmake ([a-z-]+)`", page.read_text())):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
