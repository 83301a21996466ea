"""Small programs of others, none of which edits the package: one tower alone, LoRA, a locked tower, a classifier."""

import dataclasses
import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import COLORS, jpeg, tiny_batch, TINY_MODEL, write_vocabulary

from clipa_eqx import load_pretrained, losses, make_clip
from clipa_eqx.config import TextConfig, VisionConfig
from clipa_eqx.data import load_tokenizer
from clipa_eqx.interop import export_open_clip, Preprocess, Pretrained, save_pretrained
from clipa_eqx.models import make_text, make_vision, normalize_pixels, scale_pixels, with_execution


LORA = Path(__file__).parent.parent / "experiments" / "lora.py"
PLACES = {
    "qkv": lambda blocks: blocks.attention.qkv,
    "out": lambda blocks: blocks.attention.out,
    "widen": lambda blocks: blocks.mlp.widen,
    "narrow": lambda blocks: blocks.mlp.narrow,
}


@pytest.fixture(scope="module")
def lora():
    spec = importlib.util.spec_from_file_location("lora", LORA)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def promoting():
    """Types are promoted as JAX does by default, which optax relies on."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def clip():
    vision = dataclasses.replace(TINY_MODEL.vision, depth=2)
    return make_clip(dataclasses.replace(TINY_MODEL, vision=vision), key=jax.random.key(0))


def pixels_of(batch, config):
    return jax.vmap(lambda image: normalize_pixels(scale_pixels(image), config))(jnp.asarray(batch["pixels"]))


@pytest.mark.parametrize("pool", ["first", "mean_all", "norm_mean", "attention"])
def test_features_are_all_tokens_after_the_last_norm(pool, getkey):
    config = VisionConfig(image_size=16, patch_size=4, width=8, depth=2, heads=2, hidden=16)
    config = dataclasses.replace(config, pool=pool, class_token=pool in ("first", "mean_all"))
    tower = make_vision(config, 4, key=getkey())
    features = eqx.filter_jit(tower.features)
    pixels, kept = jax.random.normal(getkey(), (16, 16, 3)), jnp.array([3, 5, 11])
    for positions, patches in ((None, 16), (kept, 3)):
        tokens = features(pixels, kept=positions)
        assert tokens.shape == (patches + config.class_token, 8)
        np.testing.assert_allclose(jnp.mean(tokens, axis=1), 0, atol=1e-5)
        pooled = {"first": lambda x: x[0], "norm_mean": lambda x: x.mean(0), "attention": tower.attention_pool}
        if pool in pooled:
            expected = tower.projection(pooled[pool](tokens))
            np.testing.assert_allclose(expected, eqx.filter_jit(tower)(pixels, kept=positions), atol=1e-5)
    assert not np.allclose(features(pixels)[-3:], features(pixels, kept=kept)[-3:])


@pytest.mark.parametrize("fields", [{"pool": "last"}, {"pool": "mean_real", "mask_padding": True, "causal": True}])
def test_features_of_a_text(fields, getkey):
    config = TextConfig(context_length=6, vocab_size=20, width=8, depth=1, heads=2, hidden=16, **fields)
    tower = make_text(config, 4, key=getkey())
    tokens = jnp.array([3, 7, 9, 2, 0, 0])
    features = eqx.filter_jit(tower.features)(tokens)
    pooled = features[-1] if config.pool == "last" else features[:4].mean(0)
    np.testing.assert_allclose(tower.projection(pooled), eqx.filter_jit(tower)(tokens), atol=1e-5)


def test_a_tower_alone_takes_a_width_or_needs_none(getkey):
    config = TINY_MODEL.vision
    for make, tower in ((make_vision, config), (make_text, TINY_MODEL.text)):
        with pytest.raises(ValueError, match=r"projection='linear' and got no width.*give embed"):
            make(tower, key=getkey())
        assert make(dataclasses.replace(tower, projection="none"), key=getkey()).projection is None
        assert make(tower, 5, key=getkey()).projection.weight.shape == (16, 5)


def test_a_classifier_on_the_image_tower_alone(getkey, promoting):
    config = dataclasses.replace(TINY_MODEL.vision, projection="none")
    tower, batch = make_vision(config, key=getkey()), tiny_batch()
    pixels, labels = pixels_of(batch, config), jax.nn.one_hot(jnp.arange(16) % 4, 4)
    head = eqx.nn.Linear(config.width, 4, key=getkey())
    model, optimizer = (tower, head), optax.adam(3e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            tower, head = model
            logits = jax.vmap(lambda image: head(tower.features(image).mean(axis=0)))(pixels)
            return optax.softmax_cross_entropy(logits, labels).mean()

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        change, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, change), state, value

    values = []
    for _ in range(30):
        model, state, value = step(model, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]


def test_a_locked_image_tower_in_a_loop_of_ones_own(clip, promoting):
    batch = tiny_batch()
    pixels, tokens = pixels_of(batch, clip.config.vision), jnp.asarray(batch["tokens"])[:, :6]
    embed = jax.jit(lambda clip, pixels: jax.vmap(clip.encode_image)(pixels))
    images = embed(clip, pixels)
    text, optimizer = clip.text, optax.adam(3e-3)
    state = optimizer.init(text)

    @jax.jit
    def step(text, state):
        def loss(text):
            tuned = eqx.tree_at(lambda clip: clip.text, clip, text)
            return losses.softmax_contrastive(images, jax.vmap(tuned.encode_text)(tokens), clip.logit_scale)

        value, gradient = jax.value_and_grad(loss)(text)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(text, change), state, value

    values = []
    for _ in range(20):
        text, state, value = step(text, state)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    tuned = eqx.tree_at(lambda clip: clip.text, clip, text)
    np.testing.assert_array_equal(embed(tuned, pixels), images)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("place", PLACES)
def test_a_layer_of_another_kind_stands_in_for_any_of_a_block(lora, clip, place, layers):
    clip = with_execution(clip, layers=layers)
    where = lambda clip: PLACES[place](clip.vision.stack.blocks)
    linear = where(clip)
    rng = np.random.default_rng(0)
    down, up = (jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32) for shape in _thin(linear.weight.shape))
    tuned = eqx.tree_at(where, clip, lora.LoRA(linear, down, up))
    merged = eqx.tree_at(lambda clip: where(clip).weight, clip, linear.weight + down @ up)
    assert tuned.vision.stack.depth == clip.vision.stack.depth == 2
    tuned = with_execution(tuned, layers=layers)
    pixels = pixels_of(tiny_batch(rows=1), clip.config.vision)[0]

    def score(clip):
        return jnp.sum(clip.encode_image(pixels, normalize=False) ** 2)

    run = jax.jit(jax.value_and_grad(score))
    (value, gradient), (expected, whole), (untuned, _) = map(run, (tuned, merged, clip))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert abs(float(value) / float(untuned) - 1) > 1e-4
    found, dense = where(gradient), where(whole).weight
    bias = 1e-5 * float(jnp.abs(dense).max())
    np.testing.assert_allclose(found.down, jnp.einsum("lio,lro->lir", dense, up), rtol=1e-3, atol=bias)
    np.testing.assert_allclose(found.up, jnp.einsum("lir,lio->lro", down, dense), rtol=1e-3, atol=bias)


def _thin(shape):
    depth, inputs, outputs = shape
    return (depth, inputs, 3), (depth, 3, outputs)


@pytest.mark.parametrize("save", [save_pretrained, export_open_clip])
def test_lora_from_weights_to_weights(lora, clip, save, tmp_path, capsys, promoting):
    write_vocabulary(tmp_path / "vocab.txt")
    save(
        Pretrained(clip, clip.config, Preprocess(16, "crop", "bicubic"), load_tokenizer(tmp_path / "vocab.txt")),
        tmp_path / "weights",
    )
    (tmp_path / "pairs").mkdir()
    for number, color in enumerate(COLORS):
        (tmp_path / "pairs" / f"{number}.jpg").write_bytes(jpeg(number, color, "left"))
        (tmp_path / "pairs" / f"{number}.txt").write_text(f"a {color} half")
    lora.main(str(tmp_path / "weights"), str(tmp_path / "pairs"), str(tmp_path / "out"), "40")
    told = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 40
    assert told[-1] < 0.9 * told[0]
    before, after = load_pretrained(tmp_path / "weights"), load_pretrained(tmp_path / "out")
    pictures = sorted((tmp_path / "pairs").glob("*.jpg"))
    texts = [path.with_suffix(".txt").read_text() for path in pictures]

    def loss(pretrained):
        embeds = jnp.asarray(pretrained.embed_images(pictures)), jnp.asarray(pretrained.embed_texts(texts))
        return float(losses.softmax_contrastive(*embeds, pretrained.model.logit_scale))

    assert loss(before) == pytest.approx(told[0], abs=1e-3)
    assert loss(after) < told[-1] + 1e-3
    np.testing.assert_array_equal(after.model.vision.patch.weight, before.model.vision.patch.weight)
    assert len(LORA.read_text().splitlines()) < 60


def test_one_encoder_under_jit(clip):
    pixels = pixels_of(tiny_batch(rows=1), clip.config.vision)[0]
    for kept in (None, jnp.array([1, 2, 9])):
        plain = jax.jit(lambda clip, pixels, kept: clip.encode_image(pixels, kept=kept))(clip, pixels, kept)
        np.testing.assert_allclose(eqx.filter_jit(clip.encode_image)(pixels, kept=kept), plain, atol=1e-6)
