"""`clipa export`, `clipa import`, `clipa verify`: out, in, and what a changed weight does to the exit code."""

import json

import numpy as np
import pytest
import safetensors.numpy
from test_interop_open_clip import pretrained, SMALL

from clipa_eqx.cli import main
from clipa_eqx.interop import load_pretrained, save_pretrained, write_probe


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    from clipa_eqx.data import train_tokenizer

    root = tmp_path_factory.mktemp("weights") / "run"
    tokenizer = train_tokenizer(["a red dog", "two blue cats"] * 3, vocab_size=64)
    save_pretrained(pretrained(SMALL, tokenizer), root)
    return root


def _result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_out_in_and_verified(run_dir, capsys):
    out, back = run_dir.parent / "out", run_dir.parent / "back"
    assert main(["export", str(run_dir), "--to", "open_clip", "--out", str(out), "--json"]) == 0
    ours = load_pretrained(run_dir)
    assert _result(capsys) == {"out": str(out), "form": "open_clip", "parameters": _count(ours.model)}
    assert main(["import", str(out), "--out", str(back), "--json"]) == 0
    assert _result(capsys) == {"out": str(back), "parameters": _count(ours.model), "tokenizer": True}
    assert (back / "model.safetensors").read_bytes() == (run_dir / "model.safetensors").read_bytes()
    for path in (out, back):
        assert main(["verify", str(path), "--json"]) == 0
        result = _result(capsys)
        assert set(result) == {"image", "text"}
        assert result["image"]["mean"] <= result["image"]["largest"] <= 1e-6


def test_import_moves_a_model_to_another_size(run_dir, tmp_path, capsys):
    sizes = ["--image-size", "42", "--context-length", "12"]
    assert main(["import", str(run_dir), "--out", str(tmp_path / "moved"), *sizes]) == 0
    assert main(["verify", str(tmp_path / "moved")]) == 0
    moved = load_pretrained(tmp_path / "moved")
    assert (moved.config.vision.image_size, moved.config.text.context_length) == (42, 12)
    assert moved.preprocess.image_size == 42
    assert main(["import", str(run_dir), "--out", str(tmp_path / "no"), "--image-size", "43"]) == 1
    assert "not a multiple of patch_size=7" in capsys.readouterr().err


def _count(model):
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(model))


def test_a_changed_weight_fails(run_dir, tmp_path, capsys):
    save_pretrained(load_pretrained(run_dir), tmp_path)
    write_probe(load_pretrained(run_dir).model, tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    ours = load_pretrained(run_dir)
    object.__setattr__(ours.model.text.norm, "bias", ours.model.text.norm.bias.at[0].add(0.5))
    save_pretrained(ours, tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "more than the tolerance of 1e-05" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--tolerance", "1.0"]) == 0


def test_faults_are_one_message(run_dir, tmp_path, capsys):
    assert main(["verify", str(run_dir)]) == 1
    assert "has no probe.safetensors" in capsys.readouterr().err
    save_pretrained(load_pretrained(run_dir), tmp_path)
    probe = {"pixels": np.zeros((2, 14, 14, 3), np.float32)}
    safetensors.numpy.save_file(probe, tmp_path / "probe.safetensors")
    assert main(["verify", str(tmp_path)]) == 1
    assert "belongs to another model" in capsys.readouterr().err
    (tmp_path / "probe.safetensors").write_bytes(b"")
    assert main(["verify", str(tmp_path)]) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), "--to", "open_clip", "--out", str(tmp_path / "out")]) == 1
    assert "FileNotFoundError" in capsys.readouterr().err
    (tmp_path / "bare.safetensors").write_bytes((run_dir / "model.safetensors").read_bytes())
    assert main(["import", str(tmp_path / "bare.safetensors"), "--out", str(tmp_path / "x"), "--model", "RN50"]) == 1
    assert "none of open_clip's plain ViT models" in capsys.readouterr().err
