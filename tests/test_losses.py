"""Contrastive losses: values by hand, and one value and gradient for every tile and number of devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from clipa_eqx.losses import clamp_logit_scale, contrastive_accuracy, sigmoid_contrastive, softmax_contrastive


BATCH, EMBED = 24, 5


def reference_softmax(image, text, scale):
    """The loss through explicit labels, as papers write it."""
    logits = jnp.exp(scale) * image @ text.T
    labels = jnp.arange(len(image))
    to_text = -jax.nn.log_softmax(logits, axis=1)[labels, labels]
    to_image = -jax.nn.log_softmax(logits, axis=0)[labels, labels]
    return (to_text.mean() + to_image.mean()) / 2


def reference_sigmoid(image, text, scale, bias):
    logits = jnp.exp(scale) * image @ text.T + bias
    signs = 2 * jnp.eye(len(image)) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(image)


LOSSES = [
    pytest.param(softmax_contrastive, reference_softmax, 3, id="softmax"),
    pytest.param(sigmoid_contrastive, reference_sigmoid, 4, id="sigmoid"),
]
"""A loss, its reference, and how many of the four arguments it takes."""


@pytest.fixture
def arguments(getkey):
    image, text = (jax.random.normal(getkey(), (BATCH, EMBED)) for _ in range(2))
    unit = lambda rows: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return unit(image), unit(image + 0.7 * text), jnp.float32(1.7), jnp.float32(-2.5)


def value_and_gradient(loss, num_arguments):
    return jax.value_and_grad(loss, argnums=tuple(range(num_arguments)))


def assert_same(result, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected)


def test_softmax_by_hand():
    image, text = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    nll = [  # the logits are [[2, 1.2], [0, 1.6]]
        math.log(math.exp(2) + math.exp(1.2)) - 2,
        math.log(math.exp(0) + math.exp(1.6)) - 1.6,
        math.log(math.exp(2) + math.exp(0)) - 2,
        math.log(math.exp(1.2) + math.exp(1.6)) - 1.6,
    ]
    np.testing.assert_allclose(softmax_contrastive(image, text, jnp.log(2.0)), np.mean(nll), rtol=1e-6)
    # No temperature tells equal embeddings apart.
    same = jnp.ones((8, 3))
    np.testing.assert_allclose(softmax_contrastive(same, same, jnp.log(10.0)), math.log(8), rtol=1e-5)


def test_sigmoid_by_hand():
    image, text = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    nll = lambda logit: math.log(1 + math.exp(-logit))
    expected = (nll(2 - 1) + nll(-(1.2 - 1)) + nll(-(0 - 1)) + nll(1.6 - 1)) / 2
    result = sigmoid_contrastive(image, text, jnp.log(2.0), jnp.float32(-1.0))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(("loss", "reference", "num_arguments"), LOSSES)
def test_whole_and_tiled_equal_the_reference(loss, reference, num_arguments, arguments):
    """All columns at once, in tiles that divide the batch, and in tiles that leave a rest."""
    arguments = arguments[:num_arguments]

    @jax.jit
    def results(*arguments):
        forms = [functools.partial(loss, tile=tile) for tile in (None, 8, 7)]
        return [value_and_gradient(form, num_arguments)(*arguments) for form in forms]

    expected = jax.jit(value_and_gradient(reference, num_arguments))(*arguments)
    for result in results(*arguments):
        assert_same(result, expected)


@pytest.mark.parametrize(
    ("num_devices", "tile", "ring"),
    [
        (1, 24, False),
        (2, 7, False),
        (4, None, False),
        (8, 5, False),
        (1, 5, True),
        (2, 5, True),
        (8, None, True),
        (8, 2, True),
    ],
)
@pytest.mark.parametrize(("loss", "reference", "num_arguments"), LOSSES)
def test_sharded_equals_the_reference(loss, reference, num_arguments, num_devices, tile, ring, arguments):
    """The mean over devices, differentiated where a training step does it, whole and in uneven tiles."""
    arguments = arguments[:num_arguments]
    specs = (P("data"), P("data"), P(), P())[:num_arguments]
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))

    def mean_loss(*arguments):
        return jax.lax.pmean(loss(*arguments, axis_name="data", tile=tile, ring=ring), "data")

    step = jax.shard_map(
        value_and_gradient(mean_loss, num_arguments), mesh=mesh, in_specs=specs, out_specs=(P(), specs)
    )
    expected = jax.jit(value_and_gradient(reference, num_arguments))(*arguments)
    assert_same(jax.jit(step)(*arguments), expected)


@pytest.mark.parametrize(("loss", "reference", "num_arguments"), LOSSES)
def test_narrow_embeddings_are_summed_in_float32(loss, reference, num_arguments, arguments):
    """Rounding the embeddings is the only loss: bfloat16 arguments and their float32 copies agree."""
    del reference
    narrow = tuple(a.astype(jnp.bfloat16) for a in arguments[:num_arguments])
    wide = tuple(a.astype(jnp.float32) for a in narrow)
    step = jax.jit(value_and_gradient(functools.partial(loss, tile=1), num_arguments))
    (value, gradient), (wide_value, wide_gradient) = step(*narrow), step(*wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wide_value, rtol=1e-6)
    for one, other in zip(gradient, wide_gradient, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))


@pytest.mark.parametrize(("loss", "reference", "num_arguments"), LOSSES)
def test_tiles_bound_the_memory(loss, reference, num_arguments):
    """At batch 16384 the logit matrix has 1 GiB; in tiles of 64 MiB, value and gradient need four of them at most."""
    del reference
    batch, tile = 16384, 1024
    embed, scalar = jax.ShapeDtypeStruct((batch, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    step = jax.jit(value_and_gradient(functools.partial(loss, tile=tile), num_arguments))
    memory = step.lower(*(embed, embed, scalar, scalar)[:num_arguments]).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * batch * tile * 4


@pytest.mark.parametrize("num_devices", [1, 8])
def test_accuracy_knows_its_rows_on_every_device(num_devices, arguments):
    image, text, *_ = arguments
    order = jnp.arange(BATCH).at[jnp.array([3, 20])].set(jnp.array([20, 3]))  # two pairs are crossed
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))
    def per_device(image, text):
        shares = [
            contrastive_accuracy(image, text, axis_name="data", tile=tile, ring=ring)
            for tile, ring in ((None, False), (2, False), (None, True), (2, True))
        ]
        return jnp.stack(shares)[None]

    assert np.all(per_device(image, image) == 1)
    per_row = np.where(np.asarray(order) == np.arange(BATCH), 1.0, 0.0)
    expected = per_row.reshape(num_devices, -1).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(per_device(image, image[order]), np.broadcast_to(expected, (num_devices, 4)), rtol=1e-6)

    nearest = np.argmax(np.asarray(image) @ np.asarray(text).T, axis=1)
    share = np.mean(nearest == np.arange(BATCH))
    assert 0 < share < 1
    np.testing.assert_allclose(contrastive_accuracy(image, text, tile=7), share, rtol=1e-6)
    np.testing.assert_allclose(per_device(image, text).mean(axis=0), [share] * 4, rtol=1e-6)


def test_accuracy_of_equal_embeddings_is_chance():
    same = jnp.ones((8, 3))
    assert contrastive_accuracy(same, same) == 1 / 8


def test_clamp_logit_scale():
    for scale, expected in [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))]:
        np.testing.assert_allclose(clamp_logit_scale(jnp.float32(scale), 100.0), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"largest inverse temperature must be at least 1.0, got 0.5"):
        clamp_logit_scale(jnp.float32(0), 0.5)


def test_a_tile_holds_a_column(arguments):
    image, text, scale, bias = arguments
    for call in (
        lambda: softmax_contrastive(image, text, scale, tile=0),
        lambda: sigmoid_contrastive(image, text, scale, bias, tile=0),
        lambda: contrastive_accuracy(image, text, tile=0),
    ):
        with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
            call()
