"""A step trains as CLIPA and open_clip do: loss, gradients and ten updates against a derivation in NumPy, float64."""

import functools

import equinox as eqx
import float64_clip as reference
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipa_eqx.config import CLIPConfig, OPENAI_MEAN, OPENAI_STD, OptimConfig, StageConfig, TextConfig, VisionConfig
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh, replicate, to_global
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step


_VISION = {"image_size": 12, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "hidden": 24}
_TEXT = {"context_length": 6, "vocab_size": 30, "width": 12, "depth": 2, "heads": 3, "hidden": 20}
CLIPA = CLIPConfig(embed=8, vision=VisionConfig(**_VISION), text=TextConfig(**_TEXT))
# What CLIPA does not have: the parts of SigLIP's image tower and of OpenAI's text tower, in one model to compile.
OTHERS = CLIPConfig(
    embed=16,
    vision=VisionConfig(
        **_VISION,
        position="learned",
        class_token=False,
        input_norm=True,
        pool="attention",
        patch_bias=True,
        activation="gelu",
        projection="none",
        pixel_mean=OPENAI_MEAN,
        pixel_std=OPENAI_STD,
    ),
    text=TextConfig(
        **_TEXT,
        causal=True,
        pool="end",
        end_id=29,
        activation="gelu_quick",
        norm_eps=1e-5,
        projection="linear_bias",
    ),
    init_logit_bias=-10.0,
)
# CLIPA's optimiser decays kernels, at rate step / warmup; open_clip's whatever has two dimensions, (step + 1) / warmup.
_KERNELS = OptimConfig(learning_rate=3e-3, warmup_steps=3, warmup_first="zero", decay_set="matrices")
_TABLES = OptimConfig(learning_rate=3e-3, warmup_steps=3, warmup_first="fraction", decay_set="all_but_norms")
RUNS = {
    "clipa": (CLIPA, "softmax", _KERNELS),
    "others": (OTHERS, "sigmoid", _TABLES),
}


def random_model(config, seed=0):
    """Matrices that keep the scale of their input; every bias, norm and table away from where it would start."""
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].name, rng.standard_normal(leaf.shape, np.float32)
        if name == "weight":
            return jnp.asarray(noise * leaf.shape[-2] ** -0.5)
        if name == "logit_scale":
            return jnp.asarray(np.float32(np.log(10)))
        if name == "logit_bias":
            return jnp.asarray(np.float32(-2))
        return jnp.asarray(0.3 * noise + (name == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(seed, rows=8):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 29, (rows, 6)).astype(np.int32)
    for row, length in enumerate(rng.integers(2, 6, rows)):
        tokens[row, length] = 29
        tokens[row, length + 1 :] = 0
    pixels = rng.integers(0, 256, (rows, 12, 12, 3)).astype(np.uint8)
    return {"pixels": pixels, "tokens": tokens, "word_class": np.zeros_like(tokens, np.uint8)}


def arrays_of(tree):
    """Leaves by the names of a weight file, float64."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@functools.cache
def trained(name):
    """Ten steps of the package: losses, rates, the first gradient, and the arrays before and after."""
    config, kind, optim = RUNS[name]
    stage = StageConfig(samples=12 * 8, batch_size=8, image_size=12, text_length=6, loss=kind, optim=optim)
    model = random_model(config)
    start = arrays_of(model)
    mesh = make_mesh(jax.devices()[:1])
    schedule = make_schedule(optim, stage.steps)
    optimizer = make_optimizer(optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=jax.random.key(0)), mesh)
    step = make_train_step(stage, schedule, optimizer, mesh)
    history, first_moment = [], None
    for number in range(10):
        state, metrics = step(state, to_global(random_batch(number), mesh))
        history.append((float(metrics["loss"]), float(metrics["learning_rate"])))
        if first_moment is None:
            first_moment = arrays_of(optax.tree.get(state.opt_state, "mu"))
    gradient = {leaf: moment / (1 - optim.b1) for leaf, moment in first_moment.items()}
    return history, gradient, start, arrays_of(state.model)


def relative(a, b):
    """Distance of two arrays over the length of the second."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_every_gradient_equal_the_derivation(name):
    """The gradient is read off Adam's first moment after one update, as the step itself took it."""
    config, kind, _ = RUNS[name]
    history, gradient, start, _ = trained(name)
    batch = random_batch(0)
    loss, expected = reference.loss_and_gradients(config, start, batch["pixels"], batch["tokens"], kind)
    assert abs(history[0][0] - loss) <= 1e-6 * loss
    assert gradient.keys() == expected.keys()
    for leaf, grad in gradient.items():
        keys = key_bias(leaf, config, grad)
        # Softmax takes a bias of the keys out again. Here its gradient is zero; the derivation leaves rounding noise.
        assert np.abs(expected[leaf][keys]).max(initial=0) < 1e-15
        assert not grad[keys].any()
        assert relative(grad, expected[leaf]) <= 1e-4, leaf
        assert np.linalg.norm(expected[leaf]) > 1e-5


@pytest.mark.parametrize("name", RUNS)
def test_ten_updates_equal_the_derivation(name):
    config, kind, optim = RUNS[name]
    history, _, start, end = trained(name)
    expected = start
    adam = reference.AdamW(start, b1=0.9, b2=0.95, eps=1e-8, decay=0.2, decay_set=optim.decay_set)
    for number, (loss, rate) in enumerate(history):
        batch = random_batch(number)
        expected_loss, grads = reference.loss_and_gradients(config, expected, batch["pixels"], batch["tokens"], kind)
        for leaf, grad in grads.items():
            grad[key_bias(leaf, config, grad)] = 0.0
        expected_rate = reference.learning_rate(number, peak=3e-3, warmup=3, steps=12, first=optim.warmup_first)
        expected = adam.step(expected, grads, expected_rate)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        np.testing.assert_allclose(rate, expected_rate, rtol=1e-6)
    for leaf, array in end.items():
        assert relative(array, expected[leaf]) <= 1e-6, leaf
        assert relative(array - start[leaf], expected[leaf] - start[leaf]) <= 1e-4, leaf


def key_bias(leaf, config, array):
    """Where an array holds the bias of attention keys."""
    width = getattr(config, leaf.split(".")[0]).width if "." in leaf else 0
    where = np.zeros(array.shape, bool)
    if leaf.endswith("attention.qkv.bias"):
        where[:, width : 2 * width] = True
    elif leaf.endswith("key_value.bias"):
        where[:width] = True
    return where


def test_the_derivation_agrees_with_finite_differences():
    """Along a random direction in all arrays at once: a slip in any operation would show."""
    for config, kind, _ in RUNS.values():
        batch, arrays = random_batch(2), arrays_of(random_model(config))
        rng = np.random.default_rng(3)
        direction = {name: rng.standard_normal(array.shape) for name, array in arrays.items()}
        _, grads = reference.loss_and_gradients(config, arrays, batch["pixels"], batch["tokens"], kind)

        def loss(step, arrays=arrays, direction=direction, config=config, batch=batch, kind=kind):
            moved = {name: array + step * direction[name] for name, array in arrays.items()}
            return float(reference.Clip(config, moved).loss(batch["pixels"], batch["tokens"], kind).value)

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert sum((grads[name] * direction[name]).sum() for name in grads) == pytest.approx(slope, rel=1e-6)
