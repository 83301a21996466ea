"""Norms, activations, attention and position tables against values worked out in NumPy."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.nn import (
    activate,
    attend,
    Attention,
    Block,
    BlockInit,
    fold_norm,
    LayerNorm,
    Linear,
    mean_of_image,
    mean_of_text,
    read_position,
    sincos_1d,
    sincos_2d,
    sincos_2d_mae,
    Stack,
    xavier_uniform,
)
from clipa_eqx.nn._stack import _branch_factors


def test_layer_norm_takes_statistics_in_float32():
    x = 100 + np.random.default_rng(0).normal(size=(3, 16))
    norm = LayerNorm(16, 1e-6)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-4)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), norm)
    y = narrow(jnp.full((2, 16), 300, jnp.bfloat16).at[:, 0].set(302))
    assert y.dtype == jnp.bfloat16
    # Squares near 90000 are 512 apart in bfloat16: statistics of that type would lose the one value that differs.
    np.testing.assert_allclose(y.astype(jnp.float32)[:, 0], math.sqrt(15), rtol=1e-2)


def test_activations():
    x = np.linspace(-4, 4, 33)
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
    expected = {
        "gelu": 0.5 * x * (1 + erf),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu_quick": x / (1 + np.exp(-1.702 * x)),
    }
    got = jax.jit(lambda x: {name: activate(x, name) for name in expected})(jnp.asarray(x, jnp.float32))
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-6, err_msg=name)


def test_attention_sees_only_what_the_mask_shows():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(4, 2, 8)), jnp.float32) for _ in range(3))
    shown = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    read = jax.jit(attend)(query, key, value, jnp.asarray(shown))
    np.testing.assert_allclose(read[0], value[0], atol=1e-6)
    for row in (1, 2):
        seen = np.flatnonzero(shown[row])
        logits = np.einsum("hd,khd->hk", query[row], key[seen]) / math.sqrt(8)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(read[row], np.einsum("hk,khd->hd", weights, value[seen]), atol=1e-5)
    np.testing.assert_allclose(read[3], np.mean(value, axis=0), atol=1e-6)


def test_the_gradient_of_attention_is_that_of_its_formula_forward_and_backward():
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(rng.normal(size=(5, 2, 8)), jnp.float32) for _ in range(3)]

    def plain(query, key, value):
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key) / math.sqrt(8), axis=-1)
        return jnp.einsum("hqk,khd->qhd", weights, value)

    tangents = [jnp.asarray(rng.normal(size=array.shape), jnp.float32) for array in arrays]
    for way in (
        lambda f: jax.jvp(f, arrays, tangents),
        lambda f: jax.vjp(f, *arrays)[1](tangents[0]),
        # Forward over reverse, as Hessian products take it.
        lambda f: jax.jvp(jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1, 2)), arrays, tangents),
    ):
        for one, two in zip(jax.tree.leaves(way(attend)), jax.tree.leaves(way(plain)), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_gradient_of_logits_is_rounded_to_the_type_of_their_factors():
    rows = jnp.ones((4, 1, 8), jnp.bfloat16)
    products = str(jax.make_jaxpr(jax.grad(lambda query: attend(query, rows, rows).astype(jnp.float32).sum()))(rows))
    wide = [line for line in products.splitlines() if "dot_general" in line and "f32[" in line]
    # The logits themselves; no product of the backward pass has a wide factor.
    assert len(wide) == 1, products


def test_a_norm_folds_into_the_layer_that_reads_it(getkey):
    norm = eqx.tree_at(
        lambda norm: (norm.scale, norm.bias),
        LayerNorm(16, 1e-6),
        (jax.random.normal(getkey(), (16,)), jax.random.normal(getkey(), (16,))),
    )
    x = jax.random.normal(getkey(), (5, 16))
    for use_bias in (True, False):
        layer = Linear(16, 24, xavier_uniform, use_bias=use_bias, key=getkey())

        def folded(norm, layer, x):
            plain, layer = fold_norm(norm, layer)
            assert plain.scale is None
            return layer(plain(x))

        loss = lambda f: jax.value_and_grad(lambda *parts: jnp.sum(jnp.sin(f(*parts))), argnums=(0, 1, 2))
        one = loss(folded)(norm, layer, x)
        two = loss(lambda norm, layer, x: layer(norm(x)))(norm, layer, x)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_layer_splits_into_equal_shares_of_its_outputs(getkey):
    layer = Linear(8, 12, xavier_uniform, key=getkey())
    layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.arange(12.0))
    x = jax.random.normal(getkey(), (3, 8))
    np.testing.assert_allclose(jnp.concatenate([part(x) for part in layer.split(3)], axis=-1), layer(x), atol=1e-6)


def test_attention_calls_a_projection_of_another_kind_as_it_is(getkey):
    class Doubled(eqx.Module):
        inner: Linear

        def __call__(self, x):
            return 2 * self.inner(x)

    attention = Attention(16, 2, xavier_uniform, xavier_uniform, key=getkey())
    x = jax.random.normal(getkey(), (5, 16))
    other = eqx.tree_at(lambda a: a.qkv, attention, Doubled(attention.qkv))
    doubled = eqx.tree_at(lambda a: (a.qkv.weight, a.qkv.bias), attention, replace_fn=lambda leaf: 2 * leaf)
    np.testing.assert_allclose(other(x), doubled(x), atol=1e-5)
    np.testing.assert_allclose(other.one(x, 2), doubled(x)[2], atol=1e-5)


def test_stacked_linear_layers_are_drawn_each_by_their_own_size(getkey):
    linear = Linear(20, 60, xavier_uniform, parts=3, stack=(50,), key=getkey())
    bound = math.sqrt(6 / 40)
    assert linear.weight.shape == (50, 20, 60)
    assert 0.99 * bound < float(jnp.max(jnp.abs(linear.weight))) <= bound
    # Each of the three matrices and each layer is a draw of its own.
    assert len(np.unique(np.asarray(linear.weight))) > 0.99 * linear.weight.size
    assert linear.bias.shape == (50, 60)
    assert not linear.bias.any()


def test_sincos_2d_by_hand():
    # width 8: two frequencies. First form: 1 and 1/10000; MAE's: 1 and 1/100. Row-major, x before y.
    for table, slow in ((sincos_2d, 1e-4), (sincos_2d_mae, 1e-2)):
        rows = table((2, 3), 8)
        assert rows.shape == (6, 8)
        x, y = 2, 1
        expected = [
            *(math.sin(x), math.sin(x * slow), math.cos(x), math.cos(x * slow)),
            *(math.sin(y), math.sin(y * slow), math.cos(y), math.cos(y * slow)),
        ]
        np.testing.assert_allclose(rows[5], expected, atol=1e-6)
    np.testing.assert_allclose(rows[0], [0, 0, 1, 1, 0, 0, 1, 1], atol=0)


def test_a_larger_grid_continues_the_computed_table():
    small, large = sincos_2d((6, 6), 16), sincos_2d((16, 16), 16)
    np.testing.assert_array_equal(large.reshape(16, 16, 16)[:6, :6], small.reshape(6, 6, 16))


def test_sincos_1d_by_hand():
    table = sincos_1d(5, 6)
    slow, slower = 1e-2, 1e-4
    expected = [math.sin(3), math.sin(3 * slow), math.sin(3 * slower), math.cos(3), math.cos(3 * slow)]
    np.testing.assert_allclose(table[3, :5], expected, atol=1e-6)
    assert sincos_1d(5, 7)[:, 6].tolist() == [0] * 5


def test_image_pools():
    x = jnp.arange(12.0).reshape(4, 3)
    got = {pool: mean_of_image(x, pool, class_token=True).tolist() for pool in ("mean", "norm_mean", "mean_all")}
    assert got == {"mean": [6, 7, 8], "norm_mean": [6, 7, 8], "mean_all": [4.5, 5.5, 6.5]}
    assert mean_of_image(x, "mean", class_token=False).tolist() == [4.5, 5.5, 6.5]


@pytest.mark.parametrize(
    ("tokens", "slots"),
    [
        # tokens, then the slots that last, end, last_real and mean_real read; 9 ends a text, 0 is padding
        ([5, 9, 0, 0], [[3], [1], [1], [0, 1]]),
        ([5, 9, 4, 9], [[3], [1], [3], [0, 1, 2, 3]]),
        ([5, 4, 6, 7], [[3], [3], [3], [0, 1, 2, 3]]),
        ([0, 0, 0, 0], [[3], [3], [0], []]),
    ],
)
def test_text_pools(tokens, slots):
    x, tokens = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), jnp.asarray(tokens)
    *single, several = slots
    assert [[int(read_position(tokens, pool, pad_id=0, end_id=9))] for pool in ("last", "end", "last_real")] == single
    assert read_position(tokens, "mean_real", pad_id=0, end_id=9) is None
    expected = x[several].mean(0) if several else np.zeros(3)
    np.testing.assert_allclose(mean_of_text(jnp.asarray(x), tokens, 0), expected, atol=1e-6)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize(("depth", "remat", "masked"), [(3, "none", True), (3, "dots", False), (1, "none", False)])
def test_one_token_is_that_row_of_all(layers, depth, remat, masked):
    normal = jax.nn.initializers.normal(0.2)
    init = BlockInit(normal, normal, normal, normal)
    shape = {"activation": "gelu_tanh", "norm_eps": 1e-6, "layer_scale": 0.7}
    blocks = Block(8, 2, 16, init, stack=(depth,), key=jax.random.key(0), **shape)
    stack = Stack(blocks, drop_path=0.5, layers=layers, remat=remat)
    x, cotangent = jax.random.normal(jax.random.key(1), (2, 5, 8))
    mask = jnp.tri(5, dtype=bool) if masked else None
    key = jax.random.key(3)

    def read(stack, x, *, one):
        y = stack.one(x, 2, mask, key=key) if one else stack(x, mask, key=key)[2]
        return jnp.sum(y * cotangent[0]), y

    got, expected = (jax.jit(jax.grad(partial(read, one=one), (0, 1), has_aux=True))(stack, x) for one in (True, False))
    assert jnp.any(expected[1])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


def test_stochastic_depth_keeps_the_mean_of_each_branch():
    factors = np.asarray(_branch_factors(3, 0.5, key=jax.random.key(0)))
    for key in range(1, 20):
        more = np.asarray(_branch_factors(3, 0.5, key=jax.random.key(key)))
        factors = np.concatenate([factors, more], axis=1)
    # The chance to stay falls from 1 to 1/2: what stays is scaled by its inverse.
    for row, stay in zip(factors, (1.0, 0.75, 0.5), strict=True):
        np.testing.assert_allclose(row[row != 0], 1 / stay, rtol=1e-6)
    assert 0 < (factors[2] == 0).sum() < factors[2].size
