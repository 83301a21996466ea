"""Image towers from files with timm's and MAE's names."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.interop import load_image_tower
from clipa_eqx.models import make_clip, with_execution
from clipa_eqx.nn import sincos_2d_mae


WIDTH, HIDDEN, PATCH, DEPTH = 16, 24, 4, 2


def make_model(seed=0, **fields):
    vision = VisionConfig(image_size=16, patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=2, hidden=HIDDEN)
    vision = dataclasses.replace(vision, **{"position": "learned", "patch_bias": True, **fields})
    text = TextConfig(context_length=4, vocab_size=8, width=8, depth=1, heads=1, hidden=8)
    shapes = eqx.filter_eval_shape(make_clip, CLIPConfig(embed=6, vision=vision, text=text), key=jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32)), shapes)


def make_arrays(side=4, *, class_token=True, class_row=True, norm="norm", seed=1):
    """The state of a timm vision transformer, drawn."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "pos_embed": (1, side * side + class_row, WIDTH),
        f"{norm}.weight": (WIDTH,),
        f"{norm}.bias": (WIDTH,),
    }
    if class_token:
        shapes["cls_token"] = (1, 1, WIDTH)
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        for name, shape in {
            "norm1": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,),
            "mlp.fc1": (HIDDEN, WIDTH),
            "mlp.fc2": (WIDTH, HIDDEN),
        }.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return {name: draw(*shape) for name, shape in shapes.items()}


def pool_arrays(seed=2):
    rng = np.random.default_rng(seed)
    shapes = {"attn_pool.latent": (1, 1, WIDTH)}
    for name, shape in {
        "q": (WIDTH, WIDTH),
        "kv": (2 * WIDTH, WIDTH),
        "proj": (WIDTH, WIDTH),
        "norm": (WIDTH,),
        "mlp.fc1": (HIDDEN, WIDTH),
        "mlp.fc2": (WIDTH, HIDDEN),
    }.items():
        shapes |= {f"attn_pool.{name}.weight": shape, f"attn_pool.{name}.bias": shape[:1]}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def mae_positions(side, width):
    """MAE's table: half of a row for the column, half for the row; a class row of zeros in front."""
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    half = lambda place: np.concatenate([np.sin(place * omega), np.cos(place * omega)])
    rows = [np.concatenate([half(col), half(row)]) for row in range(side) for col in range(side)]
    return np.concatenate([np.zeros((1, width)), rows]).astype(np.float32)[None]


@pytest.fixture
def load(tmp_path):
    """Load arrays through a file."""

    def load(arrays, model, **options):
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(a) for name, a in arrays.items()}, tmp_path / "vit.safetensors"
        )
        return load_image_tower(tmp_path / "vit.safetensors", model, **options)

    return load


def assert_same_text(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.text, other.text)


def test_every_array_has_its_place(load):
    model, arrays = make_model(pool="first"), make_arrays()
    model = with_execution(model, layers="unroll", remat_image="full")
    start = load({**arrays, "head.weight": np.ones((5, WIDTH), np.float32)}, model)
    assert start.kept == ("vision.projection",)
    assert start.ignored == ("head.weight",)
    vision = start.model.vision
    assert start.model.config == model.config
    assert (vision.stack.layers, vision.stack.remat) == ("unroll", "full")
    assert_same_text(start.model, model)
    np.testing.assert_array_equal(vision.projection.weight, model.vision.projection.weight)
    np.testing.assert_array_equal(vision.class_token, arrays["cls_token"][0, 0] + arrays["pos_embed"][0, 0])
    np.testing.assert_array_equal(vision.position, arrays["pos_embed"][0, 1:])
    np.testing.assert_array_equal(vision.norm.scale, arrays["norm.weight"])
    np.testing.assert_array_equal(vision.stack.blocks.attention.qkv.weight[1], arrays["blocks.1.attn.qkv.weight"].T)
    np.testing.assert_array_equal(vision.stack.blocks.mlp.narrow.bias[0], arrays["blocks.0.mlp.fc2.bias"])
    kernel = arrays["patch_embed.proj.weight"]
    for y, x, channel in [(0, 1, 2), (3, 0, 1)]:
        row = (y * PATCH + x) * 3 + channel
        np.testing.assert_array_equal(vision.patch.weight[row], kernel[:, channel, y, x])


def test_class_tokens_that_one_side_lacks(load):
    arrays = make_arrays()
    start = load(arrays, make_model(class_token=False, pool="mean"))
    assert start.model.vision.class_token is None
    assert start.ignored == ("cls_token",)
    np.testing.assert_array_equal(start.model.vision.position, arrays["pos_embed"][0, 1:])
    model = make_model(pool="mean")
    start = load(make_arrays(class_token=False, class_row=False), model)
    assert start.kept == ("vision.class_token", "vision.projection")
    np.testing.assert_array_equal(start.model.vision.class_token, model.vision.class_token)
    arrays = make_arrays(class_row=False, norm="fc_norm")
    start = load(arrays, model)
    np.testing.assert_array_equal(start.model.vision.class_token, arrays["cls_token"][0, 0])
    np.testing.assert_array_equal(start.model.vision.norm.bias, arrays["fc_norm.bias"])


def test_attention_pool_is_taken_where_both_have_one(load):
    arrays = make_arrays(class_token=False, class_row=False)
    model = make_model(class_token=False, pool="attention")
    start = load(arrays, model)
    assert start.kept == ("vision.attention_pool", "vision.projection")
    jax.tree.map(np.testing.assert_array_equal, start.model.vision.attention_pool, model.vision.attention_pool)
    pool = pool_arrays()
    start = load(arrays | pool, model)
    assert start.kept == ("vision.projection",)
    np.testing.assert_array_equal(start.model.vision.attention_pool.probe, pool["attn_pool.latent"][0, 0])
    np.testing.assert_array_equal(start.model.vision.attention_pool.key_value.weight, pool["attn_pool.kv.weight"].T)
    start = load(arrays | pool, make_model(class_token=False, pool="mean"))
    assert start.model.vision.attention_pool is None
    assert set(start.ignored) == set(pool)


def test_positions_are_resampled_as_transfer_does(load):
    arrays = make_arrays(side=6)
    start = load(arrays, make_model())
    assert start.model.vision.position.shape == (16, WIDTH)
    table = arrays["pos_embed"][0, 1:].reshape(6, 6, WIDTH)
    expected = jax.image.resize(table, (4, 4, WIDTH), "cubic").reshape(16, WIDTH)
    np.testing.assert_allclose(start.model.vision.position, expected, atol=1e-6)
    start = load(arrays, make_model(position="frozen"))
    assert start.model.config.vision.position == "frozen"
    np.testing.assert_allclose(start.model.vision.position, expected, atol=1e-6)
    with pytest.raises(ValueError, match="would discard the learned image positions"):
        load(arrays, make_model(position="sincos2d"))


def test_the_table_of_mae_counts_as_its_formula(load):
    arrays = make_arrays() | {"pos_embed": mae_positions(4, WIDTH)}
    decoder = {"mask_token": np.ones((1, 1, 8), np.float32), "decoder_blocks.0.norm1.weight": np.ones(8, np.float32)}
    start = load(arrays | decoder, make_model(position="sincos2d_mae"))
    assert set(start.ignored) == set(decoder)
    assert start.model.vision.position is None
    assert start.model.config.vision.position == "sincos2d_mae"
    larger = arrays | {"pos_embed": mae_positions(6, WIDTH)}
    assert load(larger, make_model(position="sincos2d_mae"), image_positions="remake").model.vision.position is None
    stretched = load(larger, make_model(position="sincos2d_mae")).model
    assert stretched.config.vision.position == "frozen"
    remade = load(larger, make_model(), image_positions="remake").model
    np.testing.assert_array_equal(remade.vision.position, arrays["pos_embed"][0, 1:])
    with pytest.raises(ValueError, match="sincos2d_mae"):
        load(arrays, make_model(position="sincos2d"))


def test_the_formula_is_bit_equal_at_real_widths():
    for side, width in [(14, 768), (14, 1024), (16, 1280)]:
        np.testing.assert_array_equal(sincos_2d_mae((side, side), width), mae_positions(side, width)[0, 1:])


def test_other_towers_are_named(load, tmp_path):
    arrays = make_arrays()
    changed = {
        "patch_bias=False": (arrays, {"patch_bias": False}),
        "input_norm=False": (arrays | {"norm_pre.weight": arrays["norm.weight"]}, {}),
        "has no norm_pre.weight": (arrays, {"input_norm": True}),
        "layer_scale=0.0": (arrays | {"blocks.0.ls1.gamma": arrays["norm.weight"]}, {}),
        "unexpected blocks.1.attn": (arrays, {"depth": 1}),
        "missing blocks.2.norm1.weight": (arrays, {"depth": 3}),
        "unexpected reg_token": (arrays | {"reg_token": arrays["cls_token"]}, {}),
        "unexpected blocks.0.attn.q_norm": (arrays | {"blocks.0.attn.q_norm.weight": arrays["norm.weight"]}, {}),
        "patch_embed.proj.weight has shape": (arrays, {"patch_size": 2}),
        "blocks.0.mlp.fc1.weight has shape": (arrays, {"hidden": 48}),
        "no table of a square": (arrays | {"pos_embed": arrays["pos_embed"][:, :13]}, {}),
        "pos_embed of 0 rows": (arrays | {"pos_embed": arrays["pos_embed"][:, :0]}, {}),
        "has no pos_embed": ({name: array for name, array in arrays.items() if name != "pos_embed"}, {}),
        "missing norm.weight": ({name: array for name, array in arrays.items() if name != "norm.weight"}, {}),
    }
    for message, (state, fields) in changed.items():
        with pytest.raises(ValueError, match=message) as caught:
            load(state, make_model(**fields))
        assert "vit.safetensors" in str(caught.value)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "vit.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load_image_tower(tmp_path / "cut.safetensors", make_model())
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_image_tower(tmp_path / "none.pth", make_model())
