"""CLIPA-JAX's checkpoints: a loaded model computes what its modules compute; a written one is theirs byte for byte."""

import dataclasses
import math
import os

import equinox as eqx
import flax_reference as flax
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.interop._clipa_jax import export_clipa_jax, load_clipa_jax
from clipa_eqx.models import count_parameters, make_clip, presets
from clipa_eqx.sizes import clip_size


IMAGE, TEXT = {"width": 16, "depth": 3, "hidden": 24, "heads": 2}, {"width": 12, "depth": 2, "hidden": 20, "heads": 3}


def clipa_shapes(image, text, *, patch=4, embed=8, vocab=19, length=6, grid=None):
    """All arrays of CLIPA's two towers; with a grid, image positions are learned."""
    shapes = {
        "img/embedding/kernel": (patch, patch, 3, image["width"]),
        "img/cls": (1, 1, image["width"]),
        **flax.blocks_shapes("img/Transformer", **image),
        **flax.norm_shapes("img/encoder_norm", image["width"]),
        **flax.dense_shapes("img/head", image["width"], embed, bias=False),
        "txt/Embed_0/embedding": (vocab, text["width"]),
        "txt/pos_embedding": (1, length, text["width"]),
        **flax.blocks_shapes("txt/Transformer", **text),
        **flax.norm_shapes("txt/encoder_norm", text["width"]),
        **flax.dense_shapes("txt/head", text["width"], embed, bias=False),
        "t": (1,),
    }
    return shapes | ({} if grid is None else {"img/pos_embedding": (1, grid**2 + 1, image["width"])})


def write_npz(path, arrays, prefix="params/"):
    """In the order in which JAX walks nested dictionaries, as CLIPA's `save_checkpoint` does."""
    names = sorted(arrays, key=lambda name: name.split("/"))
    np.savez(path, **{prefix + name: arrays[name] for name in names})
    return path


def reference_image(arrays, pixels, pool, depth=3):
    modules = flax.Reference(arrays)
    x = modules.patches("img/embedding", pixels)
    side = int(len(x) ** 0.5)
    positions = np.concatenate([np.zeros((1, x.shape[1])), flax.sincos_2d(side, side, x.shape[1])])
    x = np.concatenate([modules.arrays["img/cls"][0], x]) + modules.arrays.get("img/pos_embedding", positions[None])[0]
    x = modules.blocks("img/Transformer", depth, x)
    x = x[1:].mean(axis=0) if pool == "mean" else x[0]
    return flax.unit(modules.dense("img/head", modules.norm("img/encoder_norm", x)))


def reference_text(arrays, tokens, depth=2):
    modules = flax.Reference(arrays)
    x = modules.arrays["txt/Embed_0/embedding"][tokens] + modules.arrays["txt/pos_embedding"][0]
    x = modules.norm("txt/encoder_norm", modules.blocks("txt/Transformer", depth, x))
    return flax.unit(modules.dense("txt/head", x[-1]))


@eqx.filter_jit
def embed_both(model, pixels, tokens):
    return model.encode_image(pixels), model.encode_text(tokens)


@pytest.mark.parametrize(("pool", "grid"), [("mean", None), ("first", None), ("mean", 3)])
def test_a_loaded_model_computes_what_the_modules_compute(tmp_path, pool, grid):
    arrays = flax.random_arrays(clipa_shapes(IMAGE, TEXT, grid=grid))
    model = load_clipa_jax(write_npz(tmp_path / "clipa.npz", arrays), image_pool=pool)
    rng = np.random.default_rng(1)
    pixels, tokens = rng.standard_normal((12, 12, 3), np.float32), rng.integers(0, 19, 6)
    image_embed, text_embed = embed_both(model, pixels, tokens)
    np.testing.assert_allclose(image_embed, reference_image(arrays, pixels, pool), atol=2e-6)
    np.testing.assert_allclose(text_embed, reference_text(arrays, tokens), atol=2e-6)
    assert model.logit_scale == arrays["t"][0]
    assert model.config.vision.image_size == (224 if grid is None else 12)


def test_sizes_are_those_of_the_preset(tmp_path):
    preset = presets["clipa-s16"]
    image, text = (
        {"width": tower.width, "depth": 1, "hidden": tower.hidden, "heads": tower.heads}
        for tower in (preset.vision, preset.text)
    )
    arrays = flax.random_arrays(clipa_shapes(image, text, patch=16, embed=384, vocab=32, length=32))
    model = load_clipa_jax(write_npz(tmp_path / "clipa.npz", arrays), image_pool="first", image_size=112)
    expected = dataclasses.replace(
        preset,
        vision=dataclasses.replace(preset.vision, depth=1, image_size=112),
        text=dataclasses.replace(preset.text, depth=1, vocab_size=32),
    )
    assert model.config == expected


def test_depth_reduced_l14_goes_through_byte_for_byte(tmp_path):
    arrays = flax.random_arrays(full_size_shapes(depth=1, vocab=100))
    source = write_npz(tmp_path / "theirs.npz", arrays)
    export_clipa_jax(load_clipa_jax(source), tmp_path / "ours.npz")
    assert (tmp_path / "ours.npz").read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["ours.npz", "theirs.npz"]


def full_size_shapes(depth=None, vocab=32000):
    """CLIPA's L/14 with 32 tokens: 414 million numbers at its full depth and vocabulary."""
    config = clip_size("L/14")
    image, text = (
        {"width": tower.width, "depth": depth or tower.depth, "hidden": tower.hidden, "heads": tower.heads}
        for tower in (config.vision, config.text)
    )
    return clipa_shapes(image, text, patch=14, embed=config.embed, vocab=vocab, length=32)


def test_full_size_l14_has_the_numbers_of_the_preset():
    shapes = eqx.filter_eval_shape(make_clip, "clipa-l14", key=jax.random.key(0))
    theirs = sum(math.prod(shape) for shape in full_size_shapes().values())
    assert theirs == count_parameters(shapes) == 413_947_393


def test_other_forms_of_a_checkpoint_hold_the_same_model(tmp_path):
    arrays = flax.random_arrays(clipa_shapes(IMAGE, TEXT, grid=3))
    expected = jax.tree.leaves(load_clipa_jax(write_npz(tmp_path / "run.npz", arrays)))
    beside = {"opt/0/mu/img/cls": arrays["img/cls"], "opt/0/count": np.array(7), "chrono": np.array(1.0)}
    forms = {
        "bare": (arrays, ""),
        "bare, optimiser beside": (arrays | beside, ""),
        "inside a Flax optimiser": (arrays, "opt/target/"),
        "joined heads": (joined_heads(arrays), "target/"),
    }
    for name, (form, prefix) in forms.items():
        heads = (2, 3) if name == "joined heads" else None
        model = load_clipa_jax(write_npz(tmp_path / "form.npz", form, prefix), heads=heads)
        for ours, leaf in zip(jax.tree.leaves(model), expected, strict=True):
            np.testing.assert_array_equal(ours, leaf, err_msg=name)
    np.savez(tmp_path / "run.npz", **{f"params/{name}": a for name, a in arrays.items()}, **{"opt/x": arrays["t"]})
    assert load_clipa_jax(tmp_path / "run.npz").config == load_clipa_jax(tmp_path / "form.npz", heads=(2, 3)).config


def joined_heads(arrays):
    """The form of branch t5x: matrices and vectors, also in attention."""

    def flat(name, array):
        if "MultiHeadDotProductAttention_0" not in name:
            return array
        inputs = -1 if name.endswith("out/kernel") else array.shape[0]
        return (
            array.reshape(-1) if name.endswith("bias") else array.reshape(inputs, -1 if inputs > 0 else array.shape[-1])
        )

    return {name: flat(name, array) for name, array in arrays.items()}


def write_t5x(folder, arrays, small=("t",)):
    """As t5x writes it: an index with the arrays of no axis names, and a zarr folder for each other one."""
    tree = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        if name in small:
            packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
            place[leaf] = msgpack.ExtType(1, packed)
            continue
        zarr = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder / f"target.{name.replace('/', '.')}")},
            "metadata": {"compressor": {"id": "gzip"}, "shape": array.shape, "chunks": array.shape},
        }
        tensorstore.open(zarr | {"dtype": array.dtype.name}, create=True).result().write(array).result()
        # Where the array lies follows from its name, whatever the index says.
        place[leaf] = zarr | {"kvstore": {"driver": "gcs", "bucket": "elsewhere", "path": "/etc"}}
    state = {"target": tree, "state": {"step": 7, "param_states": {"0": None}}}
    (folder / "checkpoint").write_bytes(msgpack.packb({"version": 3, "optimizer": state}))
    return folder


def test_folders_of_t5x_hold_the_same_model(tmp_path):
    arrays = joined_heads(flax.random_arrays(clipa_shapes(IMAGE, TEXT, grid=3)))
    arrays["img/cls"] = arrays["img/cls"].astype(jnp.bfloat16)
    arrays["img/head/kernel"] = arrays["img/head/kernel"].astype(jnp.bfloat16)
    (tmp_path / "checkpoint_7").mkdir()
    folder = write_t5x(tmp_path / "checkpoint_7", arrays, small=("t", "img/cls"))
    expected = load_clipa_jax(write_npz(tmp_path / "same.npz", arrays), heads=(2, 3))
    jax.tree.map(np.testing.assert_array_equal, load_clipa_jax(folder, heads=(2, 3)), expected)

    def fails(match, error=ValueError):
        with pytest.raises(error, match=match):
            load_clipa_jax(folder, heads=(2, 3))

    (folder / "target.img.head.kernel").rename(tmp_path / "kept")
    fails("has no folder target.img.head.kernel")
    (folder / "target.img.head.kernel").mkdir()
    fails("is no zarr folder")
    index = folder / "checkpoint"
    whole = index.read_bytes()
    for damaged in (b"", whole[:50], msgpack.packb({"version": 3}), msgpack.packb([1]), b"\x80\x04\x95"):
        index.write_bytes(damaged)
        fails("is no index of a t5x checkpoint")
    index.unlink()
    fails("give a run's checkpoint_N", FileNotFoundError)


def test_heads_of_joined_kernels_follow_from_a_known_width(tmp_path):
    image = {"width": 384, "depth": 1, "hidden": 8, "heads": 6}
    text = {"width": 1280, "depth": 1, "hidden": 8, "heads": 20}
    arrays = joined_heads(flax.random_arrays(clipa_shapes(image, text)))
    config = load_clipa_jax(write_npz(tmp_path / "t5x.npz", arrays)).config
    assert (config.vision.heads, config.text.heads) == (6, 20)
    tiny = joined_heads(flax.random_arrays(clipa_shapes(IMAGE, TEXT)))
    with pytest.raises(ValueError, match="no known image tower has width 16; give the numbers of heads"):
        load_clipa_jax(write_npz(tmp_path / "tiny.npz", tiny))


def test_bfloat16_weights_are_told_apart(tmp_path):
    arrays = flax.random_arrays(clipa_shapes(IMAGE, TEXT))
    rounded = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    model = load_clipa_jax(write_npz(tmp_path / "half.npz", rounded))
    np.testing.assert_array_equal(model.text.embedding, rounded["txt/Embed_0/embedding"].astype(np.float32))


def test_our_model_comes_back_exactly(tmp_path):
    vision = {**IMAGE, "image_size": 12, "patch_size": 4, "class_token": True}
    text = TextConfig(**TEXT, context_length=7, vocab_size=23)
    for position, again in (("sincos2d", "sincos2d"), ("learned", "learned"), ("frozen", "learned")):
        config = CLIPConfig(embed=8, vision=VisionConfig(**vision, position=position), text=text)
        model = flax.random_model(config)
        export_clipa_jax(model, tmp_path / "clipa.npz")
        loaded = load_clipa_jax(tmp_path / "clipa.npz", image_size=12)
        assert loaded.config == dataclasses.replace(config, vision=VisionConfig(**vision, position=again))
        for ours, leaf in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(ours, leaf)


def test_export_names_each_field_that_it_cannot_express(tmp_path):
    config = presets["openai-vit-b-32"]
    small = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=1),
        text=dataclasses.replace(config.text, depth=1, vocab_size=49408),
        init_logit_bias=-10.0,
    )
    model = eqx.filter_eval_shape(make_clip, small, key=jax.random.key(0))
    with pytest.raises(ValueError, match="CLIPA-JAX cannot express") as raised:
        export_clipa_jax(model, tmp_path / "no.npz")
    for part in ("vision.input_norm=True", "vision.activation='gelu_quick'", "text.norm_eps=1e-05", "text.causal=True"):
        assert part in str(raised.value)
    assert "text.pool='end', where it has 'last'" in str(raised.value)
    assert "init_logit_bias" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_named(tmp_path):
    arrays = flax.random_arrays(clipa_shapes(IMAGE, TEXT, grid=3))

    def fails(match, changed, **options):
        with pytest.raises(ValueError, match=match) as raised:
            load_clipa_jax(write_npz(tmp_path / "odd.npz", changed), **options)
        assert "odd.npz" in str(raised.value)

    def without(*names):
        return {name: array for name, array in arrays.items() if not name.startswith(names)}

    fails("no img/head/kernel", without("img/head"))
    fails("missing img/cls", without("img/cls"))
    fails("no txt/Transformer/encoderblock/MlpBlock_0", without("txt/Transformer"))
    fails(r"missing .*encoderblock_1/.*query/kernel", without("img/Transformer/encoderblock_1/MultiHead"))
    fails("unexpected img/gate", arrays | {"img/gate": arrays["t"]})
    fails("12 rows, which are no square", arrays | {"img/pos_embedding": np.zeros((1, 12, 16), np.float32)})
    fails("no row for the class token", arrays | {"img/pos_embedding": np.zeros((1, 9, 16), np.float32)})
    fails("needs 4 axes", arrays | {"img/embedding/kernel": np.zeros((48, 16), np.float32)})
    fails("square patches", arrays | {"img/embedding/kernel": np.zeros((4, 2, 3, 16), np.float32)})
    fails("image_size=99", arrays, image_size=99)
    fails("must be floating-point", arrays | {"t": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match="is no npz file"):
        load_clipa_jax(__file__)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        load_clipa_jax(tmp_path / "nowhere.npz")
    whole = write_npz(tmp_path / "whole.npz", arrays).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole npz file"):
        load_clipa_jax(tmp_path / "cut.npz")
