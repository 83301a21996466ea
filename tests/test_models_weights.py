"""Weights go out and come back bit for bit; damaged and hostile files get a named error."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy

from clipa_eqx.config import CLIPConfig, config_to_json, TextConfig, VisionConfig
from clipa_eqx.models import load_weights, make_clip, save_weights


CONFIG = CLIPConfig(
    embed=8,
    vision=VisionConfig(image_size=16, patch_size=8, width=8, depth=2, heads=2, hidden=16, position="learned"),
    text=TextConfig(context_length=4, vocab_size=12, width=8, depth=1, heads=2, hidden=16),
    init_logit_bias=-10.0,
)


@pytest.fixture(scope="module")
def model():
    return eqx.filter_jit(make_clip)(CONFIG, key=jax.random.key(0))


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(model, path)
    return path


def test_a_model_comes_back_bit_for_bit(model, path):
    loaded = load_weights(path)
    assert loaded.config == CONFIG
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_names_are_the_paths_in_the_module(path):
    names = set(safetensors.numpy.load_file(path))
    assert {"vision.patch.weight", "vision.stack.blocks.attention.qkv.weight", "text.embedding", "logit_scale"} <= names


def test_nothing_is_left_beside_the_file(path):
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def _rewrite(path, change, config=CONFIG):
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    metadata = {"clipa_eqx.config": json.dumps(config_to_json(config))}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("text.embedding"), r"missing \['text.embedding'\]"),
        (lambda arrays: arrays.update(extra=np.zeros(2, np.float32)), r"unexpected \['extra'\]"),
        (
            lambda arrays: arrays.update({"text.embedding": np.zeros((12, 9), np.float32)}),
            r"text.embedding is F32 of shape \(12, 9\), its config needs F32 of shape \(12, 8\)",
        ),
        (
            lambda arrays: arrays.update({"text.embedding": np.zeros((12, 8), np.float16)}),
            r"text.embedding is F16",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(path, change, message):
    _rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        load_weights(path)


def test_a_config_that_does_not_fit_is_named(path):
    _rewrite(path, lambda arrays: None, dataclasses.replace(CONFIG, embed=16))
    with pytest.raises(ValueError, match="projection"):
        load_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04\x95\x0c\x00\x00\x00", (2**63 - 1).to_bytes(8, "little") + b"{}", b"PK\x03\x04" + bytes(100)],
    ids=["empty", "pickle", "header of absurd size", "zip"],
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors"):
        load_weights(path)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(path)


def test_safetensors_of_another_project_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match="not written by clipa_eqx"):
        load_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        load_weights(tmp_path / "none.safetensors")
