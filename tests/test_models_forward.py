"""The towers against a plain NumPy forward pass, and the properties of their knobs."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.models import make_clip, with_execution
from clipa_eqx.nn import Form, form_for, layers_for, sincos_1d, sincos_2d, sincos_2d_mae


VISION = VisionConfig(image_size=24, patch_size=8, width=16, depth=2, heads=2, hidden=24, pool="mean")
TEXT = TextConfig(context_length=7, vocab_size=40, width=16, depth=2, heads=4, hidden=24)


def filled(config):
    """A model whose every array is noise, biases and tables included: nothing is drawn on a device."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def clip_config(**changes):
    vision = {name.removeprefix("vision_"): value for name, value in changes.items() if name.startswith("vision_")}
    text = {name.removeprefix("text_"): value for name, value in changes.items() if name.startswith("text_")}
    return CLIPConfig(10, dataclasses.replace(VISION, **vision), dataclasses.replace(TEXT, **text))


def norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps) * np.asarray(layer.scale) + np.asarray(layer.bias)


def linear(layer, x):
    y = x @ np.asarray(layer.weight, np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias)


def mlp(layer, x):
    h = linear(layer.widen, x)
    if layer.activation == "gelu_quick":
        h = h / (1 + np.exp(-1.702 * h))
    elif layer.activation == "gelu_tanh":
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    else:
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    return linear(layer.narrow, h)


def heads_attend(query, key, value, heads, mask):
    size = query.shape[1] // heads
    read = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(query)):
            logits = key[:, part] @ query[row, part] / math.sqrt(size)
            weights = np.where(mask[row], np.exp(logits - logits.max()), 0)
            read[row, part] = weights / weights.sum() @ value[:, part]
    return read


def run_blocks(stack, x, mask):
    for index in range(stack.depth):
        block = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index], np.float64), stack.blocks)
        query, key, value = np.split(linear(block.attention.qkv, norm(block.attention_norm, x)), 3, axis=1)
        y = linear(block.attention.out, heads_attend(query, key, value, block.attention.heads, mask))
        x = x + (y if block.attention_scale is None else y * block.attention_scale)
        y = mlp(block.mlp, norm(block.mlp_norm, x))
        x = x + (y if block.mlp_scale is None else y * block.mlp_scale)
    return x


def image_reference(model, pixels, kept):
    tower, config = model.vision, model.vision.config
    side, (rows, cols) = config.patch_size, (pixels.shape[0] // config.patch_size, pixels.shape[1] // config.patch_size)
    patches = [
        pixels[row * side : (row + 1) * side, col * side : (col + 1) * side].reshape(-1)
        for row in range(rows)
        for col in range(cols)
    ]
    table = tower.position
    if table is None:
        table = {"sincos2d": sincos_2d, "sincos2d_mae": sincos_2d_mae}[config.position]((rows, cols), config.width)
    x = (linear(tower.patch, np.stack(patches).astype(np.float64)) + np.asarray(table))[kept]
    if tower.class_token is not None:
        x = np.concatenate([np.asarray(tower.class_token)[None], x])
    if tower.input_norm is not None:
        x = norm(tower.input_norm, x)
    x = run_blocks(tower.stack, x, np.ones((len(x), len(x)), bool))
    if config.pool == "attention":
        head = tower.attention_pool
        x = norm(tower.norm, x)
        key, value = np.split(linear(head.key_value, x), 2, axis=1)
        query = linear(head.query, np.asarray(head.probe)[None])
        y = linear(head.out, heads_attend(query, key, value, head.heads, np.ones((1, len(x)), bool)))[0]
        x = y + mlp(head.mlp, norm(head.norm, y))
    else:
        patches = slice(int(config.class_token), None)
        x = {
            "first": lambda: norm(tower.norm, x[0]),
            "mean": lambda: norm(tower.norm, x[patches].mean(0)),
            "mean_all": lambda: norm(tower.norm, x.mean(0)),
            "norm_mean": lambda: norm(tower.norm, x)[patches].mean(0),
        }[config.pool]()
    return x if tower.projection is None else linear(tower.projection, x)


def text_reference(model, tokens):
    tower, config = model.text, model.text.config
    table = sincos_1d(len(tokens), config.width) if tower.position is None else np.asarray(tower.position)
    x = np.asarray(tower.embedding, np.float64)[tokens] + table[: len(tokens)]
    mask = np.ones((len(tokens), len(tokens)), bool)
    if config.causal:
        mask &= np.tri(len(tokens), dtype=bool)
    if config.mask_padding:
        mask &= (tokens != config.pad_id)[None]
    x = norm(tower.norm, run_blocks(tower.stack, x, mask))
    real = np.flatnonzero(tokens != config.pad_id)
    x = {
        "last": lambda: x[-1],
        "end": lambda: x[np.flatnonzero(tokens == config.end_id)[0]],
        "last_real": lambda: x[real[-1]],
        "mean_real": lambda: x[real].mean(0),
    }[config.pool]()
    return x if tower.projection is None else linear(tower.projection, x)


@eqx.filter_jit
def embed_both(model, pixels, kept, tokens, normalize=False):
    image = model.encode_image(pixels, kept=kept, normalize=normalize)
    return image, model.encode_text(tokens, normalize=normalize)


# Each row changes several knobs at once, so that every value of every knob is compared in few compilations.
CONFIGS = {
    "clipa": {"vision_pool": "mean", "text_pool": "last"},
    "openai": {
        "vision_pool": "first",
        "vision_position": "learned",
        "vision_input_norm": True,
        "vision_activation": "gelu_quick",
        "text_pool": "end",
        "text_end_id": 39,
        "text_causal": True,
        "text_activation": "gelu_quick",
    },
    "clipa_torch": {
        "vision_pool": "mean_all",
        "vision_position": "sincos2d_mae",
        "vision_activation": "gelu",
        "vision_norm_eps": 1e-5,
        "vision_layer_scale": 0.1,
        "text_pool": "last_real",
        "text_mask_padding": True,
        "text_position": "sincos1d",
        "text_causal": True,
    },
    "siglip": {
        "vision_pool": "attention",
        "vision_class_token": False,
        "vision_patch_bias": True,
        "vision_position": "frozen",
        "vision_projection": "linear_bias",
        "text_pool": "mean_real",
        "text_mask_padding": True,
        "text_projection": "linear_bias",
        "text_layer_scale": 0.1,
    },
    "norm_mean": {"vision_pool": "norm_mean", "vision_class_token": False, "text_pool": "mean_real"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_towers_equal_the_numpy_reference(name):
    model = filled(clip_config(**CONFIGS[name]))
    pixels = np.random.default_rng(1).normal(size=(24, 24, 3)).astype(np.float32)
    kept, tokens = np.array([7, 0, 4]), np.array([1, 30, 12, 39, 0, 0])
    image, text = embed_both(model, jnp.asarray(pixels), jnp.asarray(kept), jnp.asarray(tokens))
    np.testing.assert_allclose(image, image_reference(model, pixels, kept), atol=1e-4)
    np.testing.assert_allclose(text, text_reference(model, tokens), atol=1e-4)


def test_images_of_any_shape_where_positions_are_computed():
    model = filled(clip_config())
    pixels = np.random.default_rng(1).normal(size=(16, 32, 3)).astype(np.float32)
    everything = np.arange(8)
    all_kept, _ = embed_both(model, jnp.asarray(pixels), jnp.asarray(everything), jnp.arange(3))
    without, _ = embed_both(model, jnp.asarray(pixels), None, jnp.arange(3))
    np.testing.assert_allclose(without, image_reference(model, pixels, everything), atol=1e-4)
    np.testing.assert_allclose(without, all_kept, atol=1e-6)


def test_normalised_embeddings_have_length_one_and_batches_are_vmapped():
    model = filled(clip_config())
    rng = np.random.default_rng(1)
    pixels, tokens = jnp.asarray(rng.normal(size=(3, 24, 24, 3)), jnp.float32), jnp.asarray(rng.integers(1, 40, (3, 7)))
    plain = eqx.filter_vmap(embed_both, in_axes=(None, 0, None, 0))(model, pixels, None, tokens)
    unit = eqx.filter_vmap(lambda *inputs: embed_both(*inputs, normalize=True), in_axes=(None, 0, None, 0))(
        model, pixels, None, tokens
    )
    for rows, directions in zip(plain, unit, strict=True):
        assert rows.shape == (3, 10)
        np.testing.assert_allclose(directions, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-5)


def test_bfloat16_weights_give_float32_embeddings():
    model = filled(clip_config())
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    pixels, tokens = jnp.ones((24, 24, 3)), jnp.arange(7)
    wide, low = (embed_both(each, pixels, None, tokens, normalize=True) for each in (model, narrow))
    for one, other in zip(wide, low, strict=True):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=3e-2)


def test_a_causal_tower_does_not_look_ahead_and_a_masked_one_not_at_padding():
    causal = filled(clip_config(text_causal=True, text_pool="end", text_end_id=39))
    masked = filled(clip_config(text_mask_padding=True, text_pool="last_real"))
    embed = eqx.filter_jit(lambda model, tokens: model.encode_text(tokens))
    ahead = [embed(causal, jnp.asarray([3, 39, *rest])) for rest in ([0, 0, 0], [5, 6, 7])]
    np.testing.assert_array_equal(*ahead)
    behind = [embed(causal, jnp.asarray([first, 39, 0, 0, 0])) for first in (3, 4)]
    assert np.abs(behind[0] - behind[1]).max() > 1e-3
    np.testing.assert_allclose(
        embed(masked, jnp.asarray([3, 5, 0, 0, 0])), embed(masked, jnp.asarray([3, 5])), atol=1e-5
    )


def test_execution_changes_neither_values_nor_gradients():
    model = filled(clip_config(text_causal=True))
    pixels, tokens = jnp.ones((24, 24, 3)) * jnp.linspace(0, 1, 24)[:, None, None], jnp.arange(7)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        return jnp.vdot(model.encode_image(pixels), model.encode_text(tokens))

    value, grad = loss(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    ways = [
        ("scan", "full", "dots", Form()),
        ("unroll", "none", "dots_no_batch", Form()),
        ("scan", "none", "none", Form(keep_products=True)),
        # In float32 the form of a GPU computes attention by plain products too.
        ("scan", "none", "none", Form("cudnn", fold_norms=True, keep_products=True)),
        ("unroll", "none", "none", Form("cudnn", fold_norms=True, keep_products=True)),
    ]
    for layers, image, text, form in ways:
        other = with_execution(model, layers=layers, remat_image=image, remat_text=text)
        stacks = lambda clip: (clip.vision.stack, clip.text.stack)
        other = eqx.tree_at(stacks, other, tuple(dataclasses.replace(stack, form=form) for stack in stacks(other)))
        assert other.vision.stack.remat == image
        got, got_grad = loss(other)
        np.testing.assert_allclose(got, value, atol=1e-5)
        for one, two in zip(jax.tree.leaves(grad), jax.tree.leaves(got_grad), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-4 * max(1, float(jnp.abs(one).max())))


@pytest.mark.parametrize(
    ("platform", "depth", "steps", "layers"),
    [
        ("cpu", 12, None, "unroll"),
        ("cpu", 13, 10**6, "scan"),
        ("gpu", 24, None, "scan"),
        ("gpu", 24, 100, "scan"),
        ("gpu", 24, 10**5, "unroll"),
        ("tpu", 12, 4000, "scan"),
        ("tpu", 12, 10**5, "unroll"),
        ("another", 12, 10**5, "scan"),
    ],
)
def test_blocks_are_written_out_where_that_makes_up_for_compiling(platform, depth, steps, layers):
    assert layers_for(platform, depth, steps) == layers


def test_a_device_gets_the_form_of_its_kind():
    assert form_for("gpu", compute_capability=9.0).attention == "cudnn"
    assert form_for("gpu", "cudnn", compute_capability=8.0).attention == "cudnn"
    assert form_for("gpu", "xla", compute_capability=9.0).attention == "xla"
    assert form_for("gpu", compute_capability=7.5).attention == form_for("tpu").attention == "xla"
    assert form_for("gpu", compute_capability=7.5).fold_norms
    assert form_for("cpu") == Form()
    for platform, capability in (("gpu", 7.5), ("cpu", 0.0)):
        with pytest.raises(ValueError, match="needs NVIDIA GPUs of compute capability 8.0 or later"):
            form_for(platform, "cudnn", compute_capability=capability)
    with pytest.raises(ValueError, match="needs NVIDIA GPUs"):
        with_execution(filled(clip_config()), attention="cudnn")


def test_stochastic_depth_skips_only_with_a_key():
    model = filled(clip_config(vision_drop_path=0.9))
    pixels = jnp.ones((24, 24, 3)) * jnp.linspace(0, 1, 24)[:, None, None]
    embed = eqx.filter_jit(lambda model, key: model.encode_image(pixels, key=key))
    plain = embed(filled(clip_config()), None)
    np.testing.assert_array_equal(embed(model, None), plain)
    drawn = [embed(model, jax.random.key(seed)) for seed in range(4)]
    assert any(np.abs(one - plain).max() > 1e-3 for one in drawn)
    np.testing.assert_array_equal(drawn[0], embed(model, jax.random.key(0)))


def test_a_frozen_table_gets_no_gradient_and_a_learned_one_does():
    pixels = jnp.ones((24, 24, 3))
    for position, moves in (("frozen", False), ("learned", True)):
        model = filled(clip_config(vision_position=position, vision_depth=1))
        grad = eqx.filter_jit(eqx.filter_grad(lambda model: model.encode_image(pixels)[0]))(model)
        assert bool(jnp.any(grad.vision.position)) == moves


def test_wrong_sizes_are_named():
    stored = filled(clip_config(vision_position="learned"))
    with pytest.raises(ValueError, match="patches of 8 px"):
        stored.encode_image(jnp.ones((24, 20, 3)))
    with pytest.raises(ValueError, match="24 x 24 px, got 16 x 24 px; .*`transfer`"):
        stored.encode_image(jnp.ones((16, 24, 3)))
    with pytest.raises(ValueError, match="context_length=7; .*`transfer`"):
        stored.encode_text(jnp.arange(8))


def test_an_edge_that_fills_no_patch_is_left_out_where_the_config_says_so(getkey):
    model = filled(clip_config(vision_image_size=29, vision_position="learned", vision_crop_edge=True))
    pixels = jax.random.normal(getkey(), (29, 29, 3))
    # The same noise in arrays of the same shapes.
    plain = filled(clip_config(vision_position="learned"))
    np.testing.assert_array_equal(model.encode_image(pixels), plain.encode_image(pixels[:24, :24]))
    with pytest.raises(ValueError, match="does not split into patches"):
        plain.encode_image(pixels)
    with pytest.raises(ValueError, match="not a multiple of patch_size=8"):
        clip_config(vision_image_size=29)
