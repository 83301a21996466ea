"""big_vision's checkpoints, SigLIP and LiT pairs and image towers alone, compute here what their modules compute."""

import equinox as eqx
import flax_reference as flax
import jax
import numpy as np
import pytest

from clipa_eqx.interop._big_vision import load_big_vision, load_big_vision_image


IMAGE, TEXT = {"width": 16, "depth": 3, "hidden": 24, "heads": 2}, {"width": 12, "depth": 2, "hidden": 20, "heads": 3}
PIXELS = np.random.default_rng(1).standard_normal((12, 12, 3), np.float32)
TOKENS = np.random.default_rng(2).integers(0, 19, 6)


def image_shapes(pool, root="img/", *, scan=False, rows=9, head=None):
    """A ViT with patches of 4 px; rows of the position table: 0 for a computed one."""
    width, hidden, heads = IMAGE["width"], IMAGE["hidden"], IMAGE["heads"]
    return {
        f"{root}embedding/kernel": (4, 4, 3, width),
        f"{root}embedding/bias": (width,),
        **({f"{root}pos_embedding": (1, rows, width)} if rows else {}),
        **({f"{root}cls": (1, 1, width)} if pool == "tok" else {}),
        **flax.blocks_shapes(f"{root}Transformer", **IMAGE, scan=scan),
        **flax.norm_shapes(f"{root}Transformer/encoder_norm", width),
        **(flax.map_head_shapes(f"{root}MAPHead_0", width, hidden, heads) if pool == "map" else {}),
        **(flax.dense_shapes(f"{root}head", width, head) if head else {}),
    }


def text_shapes(embed, *, scan=False):
    width = TEXT["width"]
    return {
        "txt/Embed_0/embedding": (19, width),
        "txt/pos_embedding": (1, 6, width),
        **flax.blocks_shapes("txt/Encoder_0", **TEXT, scan=scan),
        **flax.norm_shapes("txt/Encoder_0/encoder_norm", width),
        **flax.dense_shapes("txt/head", width, embed),
    }


SIGLIP = image_shapes("map") | text_shapes(16) | {"t": (1,), "b": (1,)}
LIT = image_shapes("tok", rows=10, head=8) | text_shapes(8) | {"t": (1,)}
MEAN = image_shapes("gap", rows=0, head=8) | text_shapes(8) | {"t": (1,)}


def write_npz(path, arrays, prefix="params/"):
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return path


def reference_image(arrays, pixels, root="img/"):
    """The tower's output before it is scaled to length 1."""
    modules = flax.Reference(arrays)
    x = modules.patches(f"{root}embedding", pixels)
    table = modules.arrays.get(f"{root}pos_embedding")
    table = flax.sincos_2d(3, 3, x.shape[1]) if table is None else table[0]
    if f"{root}cls" in arrays:
        # Old checkpoints have a position of the class token; present ones have none.
        row = table[0] if len(table) == 10 else 0.0
        x = np.concatenate([modules.arrays[f"{root}cls"][0] + row, x + table[-9:]])
    else:
        x = x + table
    x = modules.norm(f"{root}Transformer/encoder_norm", modules.blocks(f"{root}Transformer", IMAGE["depth"], x))
    if f"{root}MAPHead_0/probe" in arrays:
        x = modules.map_head(f"{root}MAPHead_0", x)
    else:
        x = x[0] if f"{root}cls" in arrays else x.mean(axis=0)
    return modules.dense(f"{root}head", x) if f"{root}head/kernel" in arrays else x


def reference_text(arrays, tokens):
    modules = flax.Reference(arrays)
    x = modules.arrays["txt/Embed_0/embedding"][tokens] + modules.arrays["txt/pos_embedding"][0]
    x = modules.norm("txt/Encoder_0/encoder_norm", modules.blocks("txt/Encoder_0", TEXT["depth"], x))
    return modules.dense("txt/head", x[-1])


@eqx.filter_jit
def embed_both(model, pixels, tokens):
    return model.encode_image(pixels), model.encode_text(tokens)


@pytest.mark.parametrize(
    ("shapes", "pool", "projection"),
    [(SIGLIP, "attention", "none"), (LIT, "first", "linear_bias"), (MEAN, "norm_mean", "linear_bias")],
)
def test_a_loaded_pair_computes_what_the_modules_compute(tmp_path, shapes, pool, projection):
    arrays = flax.random_arrays(shapes)
    model = load_big_vision(write_npz(tmp_path / "pair.npz", arrays), image_size=12)
    image_embed, text_embed = embed_both(model, PIXELS, TOKENS)
    np.testing.assert_allclose(image_embed, flax.unit(reference_image(arrays, PIXELS)), atol=2e-6)
    np.testing.assert_allclose(text_embed, flax.unit(reference_text(arrays, TOKENS)), atol=2e-6)
    assert (model.config.vision.pool, model.config.vision.projection) == (pool, projection)
    assert model.config.vision.pixel_mean == model.config.vision.pixel_std == (0.5, 0.5, 0.5)
    assert model.logit_scale == arrays["t"][0]
    assert (model.logit_bias is None) == ("b" not in arrays)
    if model.logit_bias is not None:
        assert model.logit_bias == arrays["b"][0]


def test_stacked_blocks_are_the_same_model(tmp_path):
    arrays = flax.random_arrays(SIGLIP)
    stacked = {name: array for name, array in arrays.items() if "encoderblock" not in name}
    for place, depth in (("img/Transformer", 3), ("txt/Encoder_0", 2)):
        for name in arrays:
            if name.startswith(f"{place}/encoderblock_0/"):
                parts = [arrays[name.replace("encoderblock_0", f"encoderblock_{number}")] for number in range(depth)]
                stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    shapes = image_shapes("map", scan=True) | text_shapes(16, scan=True) | {"t": (1,), "b": (1,)}
    assert {name: array.shape for name, array in stacked.items()} == shapes
    one, other = (
        load_big_vision(write_npz(tmp_path / f"{number}.npz", form)) for number, form in enumerate((arrays, stacked))
    )
    assert one.config == other.config
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_image_tower_alone_keeps_its_body(tmp_path):
    """A ViT as AugReg published it: old names, a position of the class token, a classifier to be left out."""
    arrays = flax.random_arrays(image_shapes("tok", root="", rows=10))
    old = {old_name(name): array for name, array in arrays.items()}
    classifier = {"head/kernel": np.zeros((16, 5)), "head/bias": np.zeros(5), "pre_logits/bias": np.zeros(16)}
    for number, form in enumerate((arrays, old | classifier)):
        tower = load_big_vision_image(write_npz(tmp_path / f"{number}.npz", form, prefix=""))
        assert (tower.config.pool, tower.config.projection, tower.config.image_size) == ("first", "none", 12)
        np.testing.assert_allclose(eqx.filter_jit(tower)(PIXELS), reference_image(arrays, PIXELS, root=""), atol=2e-5)


def old_name(name):
    for new, old in (
        ("LayerNorm_1", "LayerNorm_2"),
        ("MlpBlock_0", "MlpBlock_3"),
        ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
        ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
    ):
        name = name.replace(new, old)
    return name


def test_the_image_tower_of_a_pair_is_the_pair_s(tmp_path):
    path = write_npz(tmp_path / "pair.npz", flax.random_arrays(LIT))
    pair, tower = load_big_vision(path).vision, load_big_vision_image(path)
    assert pair.config == tower.config
    for a, b in zip(jax.tree.leaves(pair), jax.tree.leaves(tower), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pooling_that_lay_in_the_tower_itself(tmp_path):
    arrays = flax.random_arrays(image_shapes("map", root=""))
    inlined = {name.removeprefix("MAPHead_0/"): array for name, array in arrays.items()}
    one, other = (
        load_big_vision_image(write_npz(tmp_path / f"{number}.npz", form, prefix=""))
        for number, form in enumerate((arrays, inlined))
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_read_is_named(tmp_path):
    arrays = flax.random_arrays(SIGLIP)

    def fails(match, changed):
        with pytest.raises(ValueError, match=match) as raised:
            load_big_vision(write_npz(tmp_path / "odd.npz", changed))
        assert "odd.npz" in str(raised.value)

    bert = {"txt/bert/embeddings/word_embeddings/embedding": np.zeros((5, 4), np.float32)}
    fails(
        "no txt/Encoder_0/encoderblock/.*it has .*txt/bert", {k: a for k, a in arrays.items() if "txt/" not in k} | bert
    )
    fails("no txt/Encoder_0", {name: array for name, array in arrays.items() if "txt/" not in name})
    fails("unexpected txt/MAPHead_0/probe", arrays | {"txt/MAPHead_0/probe": np.zeros((1, 1, 12), np.float32)})
    fails(
        "missing img/MAPHead_0/LayerNorm_0/bias",
        {k: a for k, a in arrays.items() if k != "img/MAPHead_0/LayerNorm_0/bias"},
    )
    fails("missing t ", {name: array for name, array in arrays.items() if name != "t"})
    fails(r"txt/head/kernel has shape \(12, 8\)", arrays | {"txt/head/kernel": arrays["txt/head/kernel"][:, :8]})
    with pytest.raises(ValueError, match="no Transformer/encoderblock/MlpBlock_0"):
        load_big_vision_image(write_npz(tmp_path / "empty.npz", {}))
