"""`clipa data`: each command on small data, what it returns and what it prints."""

import dataclasses
import inspect
import io
import json
import subprocess
import sys

import pytest
import tyro
from PIL import Image

from clipa_eqx.cli._data_convert import Convert
from clipa_eqx.cli._data_index import Index
from clipa_eqx.cli._data_inspect import Inspect
from clipa_eqx.cli._data_tokenizer import TrainTokenizer
from clipa_eqx.cli._data_world import MakeWorld
from clipa_eqx.data import load_tokenizer
from clipa_eqx.data.world import make_world


CAPTIONS = ["a red dog", "two red dogs run", "a photo of a cat on a mat", "cat"]


@pytest.fixture
def folder(tmp_path):
    """Four pictures with captions, one of them cut short, and one picture without a caption."""
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        data = io.BytesIO()
        Image.effect_noise((40 + 10 * number, 30), 60).convert("RGB").save(data, "JPEG")
        whole = data.getvalue()
        (data_folder / f"{number}.jpg").write_bytes(whole[: len(whole) // 2] if number == 3 else whole)
        (data_folder / f"{number}.txt").write_text(caption)
    (data_folder / "alone.jpg").write_bytes(whole)
    return data_folder


@pytest.fixture
def table(folder):
    """A CSV file with columns of its own names; the last of its three images is missing."""
    rows = ["picture;text", "0.jpg;a red dog", "1.jpg;two red dogs run", "missing.jpg;a cat"]
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"


def run(kind, *arguments):
    return tyro.cli(kind, args=[str(argument) for argument in arguments]).run()


def test_index_counts_pairs_and_what_is_skipped(folder, capsys):
    result = run(Index, folder)
    assert result == {"pairs": 4, "skipped": {"image without caption": 1}, "shards_built": 0}
    assert "image without caption: 1" in capsys.readouterr().out


def test_inspect_measures_a_folder(folder, capsys):
    vocabulary = folder.parent / "tokenizer"
    run(TrainTokenizer, "--data", folder, "--out", vocabulary, "--vocab-size", 200)
    result = run(Inspect, folder, "--tokenizer", vocabulary)
    assert (result["pairs"], result["skipped"], result["sampled"]) == (4, {"image without caption": 1}, 4)
    ((reason, count),) = result["broken"].items()
    assert count == 1
    assert "truncated (N bytes" in reason
    assert result["width"] == {"min": 40, "median": 50, "p95": 50, "max": 60}
    assert result["height"] == {"min": 30, "median": 30, "p95": 30, "max": 30}
    lengths = sorted(map(len, CAPTIONS))
    assert result["caption_characters"] == {"min": 3, "median": lengths[1], "p95": lengths[2], "max": 25}
    counts = sorted(load_tokenizer(vocabulary).count_tokens(CAPTIONS).tolist())
    assert result["caption_tokens"] == {"min": counts[0], "median": counts[1], "p95": counts[2], "max": counts[3]}
    assert result["cut_at"]["8"] == sum(count > 8 for count in counts) / 4 > 0
    assert result["cut_at"]["64"] == 0
    assert json.loads(json.dumps(result)) == result
    printed = capsys.readouterr().out
    assert "cut at" in printed
    assert "caption tokens" in printed


def test_inspect_reads_an_evenly_spread_sample(folder):
    result = run(Inspect, folder, "--sample", 2)
    assert result["sampled"] == 2
    assert result["width"] == {"min": 40, "median": 40, "p95": 40, "max": 60}
    assert "caption_tokens" not in result
    with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
        run(Inspect, folder, "--sample", 0)


def test_columns_of_a_csv_file_and_missing_images(table):
    columns = ("--csv-separator", ";", "--image-field", "picture", "--caption-field", "text")
    assert run(Index, table, *columns)["pairs"] == 3
    result = run(Inspect, table, *columns)
    assert result["broken"] == {"No such file or directory": 1}
    assert result["caption_characters"]["max"] == len("two red dogs run")
    out = table.parent.parent / "tokenizer"
    trained = run(TrainTokenizer, "--data", table, "--out", out, "--vocab-size", 100, *columns)
    assert trained["captions"] == 3
    with pytest.raises(ValueError, match="no image among the fields picture, text"):
        run(Index, table, "--csv-separator", ";")


def test_train_tokenizer_writes_one_that_loads(folder):
    out = folder.parent / "tokenizer"
    result = run(TrainTokenizer, "--data", folder, "--out", out, "--vocab-size", 120, "--captions", 3)
    tokenizer = load_tokenizer(out)
    assert (result["tokenizer"], result["vocab_size"], result["captions"]) == (str(out), tokenizer.vocab_size, 3)
    assert tokenizer.kind == "wordpiece"
    assert "red" in tokenizer.tokens()


def test_make_world_has_the_options_of_the_library_function(tmp_path):
    parameters = inspect.signature(make_world).parameters
    fields = {field.name: field.default for field in dataclasses.fields(MakeWorld) if field.name != "json"}
    assert {name: parameter.default for name, parameter in parameters.items() if name != "directory"} == {
        name: default for name, default in fields.items() if name != "directory"
    }
    sizes = ("--pairs", 3, "--classification-images", 120, "--retrieval-images", 1, "--image-size", 32)
    result = run(MakeWorld, tmp_path / "world", *sizes)
    assert (result["pairs"], result["image_size"], result["directory"]) == (3, 32, str(tmp_path / "world"))
    assert run(Index, tmp_path / "world" / "train")["pairs"] == 3
    json.dumps(result)


def test_a_contact_sheet_shows_pictures_and_escaped_captions(folder):
    (folder / "2.txt").write_text("<script>alert('x')</script> & so on")
    page = folder.parent / "sheet.html"
    assert run(Inspect, folder, "--sheet", page)["sheet"] == str(page)
    content = page.read_text()
    assert content.count("<figure>") == 4
    assert "&lt;script&gt;" in content
    assert "<script" not in content
    assert "broken: " in content, "the picture that is cut short"
    run(Inspect, folder, "--sheet", folder.parent / "sheet.png")
    with Image.open(folder.parent / "sheet.png") as sheet:
        assert sheet.width > 6 * 160
        assert len(sheet.getcolors(1 << 20)) > 100
    with pytest.raises(ValueError, match=r"\.png or \.html file, got 'sheet\.gif'"):
        run(Inspect, folder, "--sheet", folder.parent / "sheet.gif")


def test_convert_reports_what_it_wrote(folder, capsys):
    out = folder.parent / "out"
    result = run(Convert, folder, "--out", out, "--to", "array-record")
    expected = {"out": str(out), "pairs": 4, "skipped": {"image without caption": 1}, "shards": 1, "shards_kept": 0}
    assert result == expected
    assert run(Convert, folder, "--out", out, "--to", "array-record") == expected | {"shards_kept": 1}
    assert run(Index, out)["pairs"] == 4
    assert "shards kept" in capsys.readouterr().out


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = "import sys, clipa_eqx.cli._main; print(sorted({'numpy', 'jax', 'tokenizers', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
