"""Tables of names and layouts: both directions of each, shapes, missing and unexpected names, hostile files."""

import json
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.interop import _mapping as mapping
from clipa_eqx.interop._arrays import open_arrays, Renamed
from clipa_eqx.interop._mapping import Rule
from clipa_eqx.models import make_clip, named_leaves


CONFIG = CLIPConfig(
    embed=8,
    vision=VisionConfig(image_size=8, patch_size=4, width=8, depth=3, heads=2, hidden=12, position="learned"),
    text=TextConfig(context_length=5, vocab_size=11, width=8, depth=2, heads=2, hidden=12),
)


@pytest.fixture(scope="module")
def model():
    leaves, structure = jax.tree.flatten(make_clip_shapes())
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def _rules(**changes):
    """The identity for each array but those given."""
    names = named_leaves(make_clip_shapes())
    return [changes.get(name.replace(".", "_"), Rule(name, "their." + name)) for name in names]


def make_clip_shapes():
    return eqx.filter_eval_shape(make_clip, CONFIG, key=jax.random.key(0))


CHANGES = {
    "vision_patch_weight": Rule("vision.patch.weight", "conv", mapping.patch_torch(4)),
    "vision_class_token": Rule("vision.class_token", "cls", mapping.leading_axes(2)),
    "vision_position": Rule("vision.position", "table", mapping.leading_axes(1), class_row=True),
    "vision_stack_blocks_attention_qkv_weight": Rule(
        "vision.stack.blocks.attention.qkv.weight",
        ("v.{i}.q", "v.{i}.k", "v.{i}.v"),
        mapping.joined(3, mapping.transposed),
    ),
    "vision_stack_blocks_attention_qkv_bias": Rule(
        "vision.stack.blocks.attention.qkv.bias",
        ("qb.{i}", "kb.{i}", "vb.{i}"),
        mapping.joined(3, mapping.split_axis(-1, 2)),
    ),
    "text_stack_blocks_attention_qkv_weight": Rule(
        "text.stack.blocks.attention.qkv.weight", ("tq", "tk", "tv"), mapping.joined(3, mapping.split_axis(-1, 2))
    ),
    "text_stack_blocks_attention_out_weight": Rule(
        "text.stack.blocks.attention.out.weight", "to.{i}", mapping.split_axis(-2, 2)
    ),
    "text_stack_blocks_mlp_widen_weight": Rule("text.stack.blocks.mlp.widen.weight", "tw", mapping.transposed),
}


def test_each_layout_has_the_shapes_and_values_by_hand(model):
    arrays = mapping.export_arrays(_rules(**CHANGES), model)
    vision, text = model.vision, model.text
    assert arrays["conv"].shape == (8, 3, 4, 4)
    # Row (y, x, channel) of the patch weight.
    assert arrays["conv"][5, 2, 1, 3] == vision.patch.weight[(1 * 4 + 3) * 3 + 2, 5]
    assert arrays["cls"].shape == (1, 1, 8)
    assert arrays["table"].shape == (1, 5, 8)
    np.testing.assert_array_equal(arrays["table"][0, 0], np.zeros(8))
    np.testing.assert_array_equal(arrays["table"][0, 1:], vision.position)
    qkv = vision.stack.blocks.attention.qkv
    np.testing.assert_array_equal(arrays["v.2.k"], np.asarray(qkv.weight)[2, :, 8:16].T)
    np.testing.assert_array_equal(arrays["vb.1"], np.asarray(qkv.bias)[1, 16:].reshape(2, 4))
    assert arrays["tk"].shape == (2, 8, 2, 4)
    np.testing.assert_array_equal(
        arrays["tk"][1, :, 1], np.asarray(text.stack.blocks.attention.qkv.weight)[1, :, 12:16]
    )
    np.testing.assert_array_equal(arrays["to.1"][1], np.asarray(text.stack.blocks.attention.out.weight)[1, 4:])
    np.testing.assert_array_equal(arrays["tw"], np.asarray(text.stack.blocks.mlp.widen.weight).swapaxes(1, 2))


def test_what_is_exported_comes_back_exactly(model):
    rules = _rules(**CHANGES)
    arrays = mapping.export_arrays(rules, model)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in arrays.values())
    back = mapping.import_arrays(rules, arrays, CONFIG)
    assert back.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, back, model)


def test_class_position_is_added_to_the_class_token(model):
    rules = _rules(**CHANGES)
    arrays = mapping.export_arrays(rules, model)
    row = np.arange(8, dtype=np.float32)
    arrays["table"][0, 0] = row
    back = mapping.import_arrays(rules, arrays, CONFIG)
    np.testing.assert_array_equal(back.vision.class_token, np.asarray(model.vision.class_token) + row)


def test_rules_must_cover_the_model(model):
    for rules in (_rules()[1:], [*_rules(), Rule("vision.rope", "rope")], [*_rules(), _rules()[0]]):
        with pytest.raises(ValueError, match="The table does not fit the model"):
            mapping.export_arrays(rules, model)


def test_narrow_types_become_float32(model):
    rules = _rules()
    arrays = mapping.export_arrays(rules, model)
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
        back = mapping.import_arrays(rules, {name: array.astype(dtype) for name, array in arrays.items()}, CONFIG)
        expected = np.asarray(model.text.embedding).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(back.text.embedding, expected)


def test_faults_name_the_array_and_the_part(model):
    rules = _rules(**CHANGES)
    arrays = mapping.export_arrays(rules, model)
    missing = {name: array for name, array in arrays.items() if name != "v.1.k"}
    with pytest.raises(ValueError, match=r"missing v\.1\.k \(vision blocks attention\.qkv\.weight\)"):
        mapping.import_arrays(rules, missing, CONFIG)
    with pytest.raises(ValueError, match=r"unexpected their\.text\.rotary \(text\)"):
        mapping.import_arrays(rules, arrays | {"their.text.rotary": np.zeros(1)}, CONFIG)
    back = mapping.import_arrays(rules, arrays | {"position_ids": np.zeros(1)}, CONFIG, ignored=["*position_ids"])
    np.testing.assert_array_equal(back.text.embedding, model.text.embedding)
    with pytest.raises(
        ValueError, match=r"conv has shape \(8, 4, 4, 3\), but vision patch.weight needs \(8, 3, 4, 4\)"
    ):
        mapping.import_arrays(rules, arrays | {"conv": arrays["conv"].transpose(0, 2, 3, 1)}, CONFIG)
    with pytest.raises(ValueError, match="tw for text blocks mlp.widen.weight is int32"):
        mapping.import_arrays(rules, arrays | {"tw": arrays["tw"].astype(np.int32)}, CONFIG)


def test_image_tower_alone(model):
    rules = [rule for rule in _rules(**CHANGES) if rule.ours.startswith("vision.")]
    arrays = mapping.export_arrays(_rules(**CHANGES), model)
    vision = {name: arrays[name] for rule in rules for name in arrays if _names(rule, name)}
    tower = mapping.import_vision(rules, vision, CONFIG.vision, CONFIG.embed)
    jax.tree.map(np.testing.assert_array_equal, tower, model.vision)


def _names(rule, name):
    return any(name in [theirs.replace("{i}", str(i)) for i in range(3)] for theirs in rule.names)


def test_files_are_read_alike(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.float16)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **arrays)
    for name in ("x.safetensors", "x.npz"):
        file = open_arrays(tmp_path / name)
        assert sorted(file) == ["a", "b"]
        assert file.shape("a") == (2, 3)
        assert file.shape("b") == ()
        assert len(file) == 2
        for key, array in arrays.items():
            np.testing.assert_array_equal(file[key], array)
        assert "a" in file
        assert "c" not in file
        with pytest.raises(KeyError):
            file["c"]
        renamed = Renamed(file, {"new": "a"})
        assert list(renamed) == ["new"]
        assert renamed.shape("new") == (2, 3)
        np.testing.assert_array_equal(renamed["new"], arrays["a"])


def test_bfloat16_is_read_without_torch(tmp_path):
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"a": values}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(open_arrays(tmp_path / "x.safetensors")["a"].astype(np.float32), [1.5, -2.0])


class _Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_hostile_files_are_refused(tmp_path):
    whole = safetensors.numpy.save({"a": np.zeros((4, 4), np.float32)})
    header = json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 10**15]}}).encode()
    files = {
        "truncated.safetensors": whole[:-7],
        "empty.safetensors": b"",
        "header.safetensors": (2**60).to_bytes(8, "little") + whole[8:],
        "offsets.safetensors": len(header).to_bytes(8, "little") + header + bytes(64),
        "text.npz": b"not a zip",
    }
    np.savez(tmp_path / "bomb.npz", a=np.array([_Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "whole.npz", a=np.zeros((4, 4), np.float32))
    files["cut.npz"] = (tmp_path / "whole.npz").read_bytes()[:-30]
    with zipfile.ZipFile(tmp_path / "absurd.npz", "w") as file:
        lie = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }"
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(lie).to_bytes(2, "little") + lie)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in [*files, "bomb.npz", "absurd.npz"]:
        with pytest.raises(ValueError, match=name):
            open_arrays(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        open_arrays(tmp_path / "none.npz")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="suffix"):
        open_arrays(tmp_path / "x.h5")


def test_types_that_numpy_lacks_are_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"types that NumPy lacks: a \(F8_E4M3\)"):
        open_arrays(tmp_path / "x.safetensors")
