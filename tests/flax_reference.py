"""Checkpoints as Flax's modules of CLIPA-JAX and big_vision define them, and what those modules compute, in float64."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from clipa_eqx.models import make_clip


def random_arrays(shapes, seed=0):
    """Values for a table of shapes: matrices that keep the scale of their input, every bias and norm perturbed."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        noise = rng.standard_normal(shape, np.float32)
        if name.endswith("scale"):
            return 1 + noise / 4
        return noise * np.float32(0.7 / math.sqrt(max(shape[-3:-1], default=4)) if "kernel" in name else 0.3)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def random_model(config):
    """A model of random arrays; drawing one by its initialisers would have to be compiled."""
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), shapes)


def norm_shapes(name, width):
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def dense_shapes(name, inputs, outputs, bias=True):
    return {f"{name}/kernel": (inputs, outputs)} | ({f"{name}/bias": (outputs,)} if bias else {})


def attention_shapes(name, width, heads):
    """Flax's MultiHeadDotProductAttention."""
    head_dim = width // heads
    parts = {}
    for part in ("query", "key", "value"):
        parts |= {f"{name}/{part}/kernel": (width, heads, head_dim), f"{name}/{part}/bias": (heads, head_dim)}
    return parts | {f"{name}/out/kernel": (heads, head_dim, width), f"{name}/out/bias": (width,)}


def mlp_shapes(name, width, hidden):
    return dense_shapes(f"{name}/Dense_0", width, hidden) | dense_shapes(f"{name}/Dense_1", hidden, width)


def blocks_shapes(place, width, depth, hidden, heads, scan=False):
    """All encoder blocks of a tower, each with its arrays, or one with stacked arrays."""
    shapes = {}
    for number in range(1 if scan else depth):
        name = f"{place}/encoderblock" + ("" if scan else f"_{number}")
        block = {
            **norm_shapes(f"{name}/LayerNorm_0", width),
            **attention_shapes(f"{name}/MultiHeadDotProductAttention_0", width, heads),
            **norm_shapes(f"{name}/LayerNorm_1", width),
            **mlp_shapes(f"{name}/MlpBlock_0", width, hidden),
        }
        shapes |= {key: (depth, *shape) if scan else shape for key, shape in block.items()}
    return shapes


def map_head_shapes(name, width, hidden, heads):
    return {
        f"{name}/probe": (1, 1, width),
        **attention_shapes(f"{name}/MultiHeadDotProductAttention_0", width, heads),
        **norm_shapes(f"{name}/LayerNorm_0", width),
        **mlp_shapes(f"{name}/MlpBlock_0", width, hidden),
    }


class Reference:
    """The modules, run on a table of arrays."""

    def __init__(self, arrays):
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(self, name, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
        return x * self.arrays[f"{name}/scale"] + self.arrays[f"{name}/bias"]

    def dense(self, name, x):
        return x @ self.arrays[f"{name}/kernel"] + self.arrays.get(f"{name}/bias", 0.0)

    def attention(self, name, inputs, others):
        def heads(part, x):
            kernel, bias = self.arrays[f"{name}/{part}/kernel"], self.arrays[f"{name}/{part}/bias"]
            return np.einsum("td,dhk->thk", x, kernel) + bias

        query, key, value = heads("query", inputs), heads("key", others), heads("value", others)
        logits = np.einsum("qhk,thk->hqt", query, key) / math.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        read = np.einsum("hqt,thk->qhk", weights / weights.sum(axis=-1, keepdims=True), value)
        return np.einsum("qhk,hkd->qd", read, self.arrays[f"{name}/out/kernel"]) + self.arrays[f"{name}/out/bias"]

    def mlp(self, name, x):
        x = self.dense(f"{name}/Dense_0", x)
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.dense(f"{name}/Dense_1", x)

    def blocks(self, place, depth, x):
        for number in range(depth):
            name = f"{place}/encoderblock_{number}"
            y = self.norm(f"{name}/LayerNorm_0", x)
            x = x + self.attention(f"{name}/MultiHeadDotProductAttention_0", y, y)
            x = x + self.mlp(f"{name}/MlpBlock_0", self.norm(f"{name}/LayerNorm_1", x))
        return x

    def map_head(self, name, x):
        y = self.attention(f"{name}/MultiHeadDotProductAttention_0", self.arrays[f"{name}/probe"][0], x)
        return (y + self.mlp(f"{name}/MlpBlock_0", self.norm(f"{name}/LayerNorm_0", y)))[0]

    def patches(self, name, pixels):
        """The patch convolution, row-major."""
        kernel = self.arrays[f"{name}/kernel"]
        side = kernel.shape[0]
        rows, cols = pixels.shape[0] // side, pixels.shape[1] // side
        tiles = pixels.reshape(rows, side, cols, side, 3)
        x = np.einsum("aibjc,ijcd->abd", tiles, kernel).reshape(rows * cols, -1)
        return x + self.arrays.get(f"{name}/bias", 0.0)


def unit(x):
    """The vector, scaled to length 1."""
    return x / np.linalg.norm(x)


def sincos_2d(rows, cols, width):
    """The computed table of both projects, by loops: sine and cosine of the column, then of the row."""
    quarter = width // 4
    table = np.zeros((rows * cols, width))
    for row in range(rows):
        for col in range(cols):
            for i in range(quarter):
                omega = 10000 ** (-i / (quarter - 1))
                table[row * cols + col, i::quarter] = [
                    math.sin(col * omega),
                    math.cos(col * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                ]
    return table
