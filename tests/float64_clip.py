"""CLIP and its training in NumPy and float64, derived anew: operations with their gradients, towers, losses, AdamW.

Nothing here comes from the package. Arrays go by the names of the package's weight files; the configs are its
dataclasses, read field by field.
"""

import math

import numpy as np


class Node:
    """A value, and the gradient that flows back to it."""

    def __init__(self, value, parents=(), backward=None):
        self.value = np.asarray(value, np.float64)
        self.parents, self.backward = parents, backward
        self.grad = np.zeros_like(self.value)

    def run_backward(self):
        """Fill `grad` of every node that this scalar was computed from."""
        order, seen = [], set()

        def visit(node):
            if id(node) not in seen:
                seen.add(id(node))
                for parent in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.grad = np.ones_like(self.value)
        for node in reversed(order):
            if node.backward is not None:
                for parent, grad in zip(node.parents, node.backward(node.grad), strict=True):
                    parent.grad += _summed_to(grad, parent.value.shape)


def _summed_to(grad, shape):
    """Undo broadcasting: the gradient of a value that was repeated is the sum over its copies."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    return grad.sum(axis=tuple(i for i, side in enumerate(shape) if side == 1 != grad.shape[i]), keepdims=True)


def add(a, b):
    return Node(a.value + b.value, (a, b), lambda g: (g, g))


def scale(a, factor):
    return Node(a.value * factor, (a,), lambda g: (g * factor,))


def multiply(a, b):
    return Node(a.value * b.value, (a, b), lambda g: (g * b.value, g * a.value))


def matmul(a, b):
    swapped = lambda x: np.swapaxes(x, -1, -2)
    return Node(a.value @ b.value, (a, b), lambda g: (g @ swapped(b.value), swapped(a.value) @ g))


def reshape(a, shape):
    return Node(a.value.reshape(shape), (a,), lambda g: (g.reshape(a.value.shape),))


def transpose(a, axes):
    return Node(a.value.transpose(axes), (a,), lambda g: (g.transpose(np.argsort(axes)),))


def take(a, index):
    """`a[index]` for any index; places that are read twice get both gradients."""

    def backward(g):
        grad = np.zeros_like(a.value)
        np.add.at(grad, index, g)
        return (grad,)

    return Node(a.value[index], (a,), backward)


def concatenate(a, b, axis):
    cut = a.value.shape[axis]
    return Node(np.concatenate([a.value, b.value], axis), (a, b), lambda g: tuple(np.split(g, [cut], axis)))


def mean(a, axis):
    count = a.value.shape[axis]
    return Node(a.value.mean(axis), (a,), lambda g: (np.repeat(np.expand_dims(g, axis) / count, count, axis),))


def total(a):
    return Node(a.value.sum(), (a,), lambda g: (np.full_like(a.value, g),))


def exp(a):
    value = np.exp(a.value)
    return Node(value, (a,), lambda g: (g * value,))


def softmax(a):
    value = np.exp(a.value - a.value.max(axis=-1, keepdims=True))
    value /= value.sum(axis=-1, keepdims=True)
    return Node(value, (a,), lambda g: (value * (g - (g * value).sum(axis=-1, keepdims=True)),))


def log_softmax(a):
    shifted = a.value - a.value.max(axis=-1, keepdims=True)
    value = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return Node(value, (a,), lambda g: (g - np.exp(value) * g.sum(axis=-1, keepdims=True),))


def log_sigmoid(a):
    return Node(-np.logaddexp(0, -a.value), (a,), lambda g: (g / (1 + np.exp(a.value)),))


def standardize(a, eps):
    """Zero mean and unit variance over the last axis."""
    centred = a.value - a.value.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    value = centred * inverse

    def backward(g):
        along = (g * value).mean(axis=-1, keepdims=True)
        return (inverse * (g - g.mean(axis=-1, keepdims=True) - value * along),)

    return Node(value, (a,), backward)


def unit(a):
    """Length 1 over the last axis."""
    inverse = 1 / np.sqrt((a.value**2).sum(axis=-1, keepdims=True))
    value = a.value * inverse
    return Node(value, (a,), lambda g: (inverse * (g - value * (g * value).sum(axis=-1, keepdims=True)),))


def activate(a, kind):
    """GELU in its three forms, each with its derivative."""
    x = a.value
    if kind == "gelu_quick":
        gate = 1 / (1 + np.exp(-1.702 * x))
        value, slope = x * gate, gate + 1.702 * x * gate * (1 - gate)
    elif kind == "gelu_tanh":
        root = math.sqrt(2 / math.pi)
        inner = np.tanh(root * (x + 0.044715 * x**3))
        value = 0.5 * x * (1 + inner)
        slope = 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * root * (1 + 3 * 0.044715 * x**2)
    else:
        cumulative = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        value, slope = x * cumulative, cumulative + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return Node(value, (a,), lambda g: (g * slope,))


class Clip:
    """Both towers on a batch; `arrays` are the parameters by name."""

    def __init__(self, config, arrays):
        self.config = config
        self.nodes = {name: Node(array) for name, array in arrays.items()}

    def linear(self, name, x, block=None):
        """A linear layer, or the one of a block; a layer that does not exist changes nothing."""
        if f"{name}.weight" not in self.nodes:
            return x
        weight, bias = self.nodes[f"{name}.weight"], self.nodes.get(f"{name}.bias")
        x = matmul(x, weight if block is None else take(weight, block))
        return x if bias is None else add(x, bias if block is None else take(bias, block))

    def norm(self, name, x, eps, block=None):
        if f"{name}.scale" not in self.nodes:
            return x
        gain, bias = self.nodes[f"{name}.scale"], self.nodes[f"{name}.bias"]
        if block is not None:
            gain, bias = take(gain, block), take(bias, block)
        return add(multiply(standardize(x, eps), gain), bias)

    def attend(self, query, key, value, heads, mask=None):
        """(batch, tokens, dim) each; every head reads with its own slice of the features."""
        batch, dim = query.value.shape[0], query.value.shape[-1]
        split = lambda x: transpose(reshape(x, (batch, -1, heads, dim // heads)), (0, 2, 1, 3))
        query, key, value = split(query), split(key), split(value)
        logits = scale(matmul(query, transpose(key, (0, 1, 3, 2))), (dim // heads) ** -0.5)
        if mask is not None:
            logits = add(logits, Node(np.where(mask, 0.0, -1e30)))
        return reshape(transpose(matmul(softmax(logits), value), (0, 2, 1, 3)), (batch, -1, dim))

    def blocks(self, tower, x, config, mask=None):
        for i in range(config.depth):
            name, dim = f"{tower}.stack.blocks", config.width
            y = self.linear(f"{name}.attention.qkv", self.norm(f"{name}.attention_norm", x, config.norm_eps, i), i)
            parts = [take(y, np.s_[:, :, part * dim : (part + 1) * dim]) for part in range(3)]
            x = add(x, self.linear(f"{name}.attention.out", self.attend(*parts, config.heads, mask), i))
            x = add(x, self.mlp(f"{name}.mlp", self.norm(f"{name}.mlp_norm", x, config.norm_eps, i), config, i))
        return x

    def mlp(self, name, x, config, block=None):
        return self.linear(f"{name}.narrow", activate(self.linear(f"{name}.widen", x, block), config.activation), block)

    def image(self, raw):
        """Embeddings of a batch of bytes."""
        config, side = self.config.vision, self.config.vision.patch_size
        pixels = (raw / 255 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
        batch, rows, cols = len(raw), raw.shape[1] // side, raw.shape[2] // side
        patches = pixels.reshape(batch, rows, side, cols, side, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.linear("vision.patch", Node(patches.reshape(batch, rows * cols, -1)))
        position = self.nodes.get("vision.position")
        x = add(x, position if position is not None else Node(_sincos(rows, cols, config.width)))
        if config.class_token:
            first = add(Node(np.zeros((batch, 1, config.width))), self.nodes["vision.class_token"])
            x = concatenate(first, x, 1)
        x = self.blocks("vision", self.norm("vision.input_norm", x, config.norm_eps), config)
        return unit(self.linear("vision.projection", self.pool_image(x, config)))

    def pool_image(self, x, config):
        if config.pool == "attention":
            return self.attention_pool(self.norm("vision.norm", x, config.norm_eps), config)
        if config.pool == "norm_mean":
            return mean(self.norm("vision.norm", x, config.norm_eps), 1)
        x = take(x, np.s_[:, 0]) if config.pool == "first" else mean(take(x, np.s_[:, int(config.class_token) :]), 1)
        return self.norm("vision.norm", x, config.norm_eps)

    def attention_pool(self, x, config):
        name, batch, dim = "vision.attention_pool", x.value.shape[0], config.width
        probe = add(Node(np.zeros((batch, 1, dim))), self.nodes[f"{name}.probe"])
        both = self.linear(f"{name}.key_value", x)
        key, value = take(both, np.s_[:, :, :dim]), take(both, np.s_[:, :, dim:])
        y = self.linear(f"{name}.out", self.attend(self.linear(f"{name}.query", probe), key, value, config.heads))
        y = add(y, self.mlp(f"{name}.mlp", self.norm(f"{name}.norm", y, config.norm_eps), config))
        return take(y, np.s_[:, 0])

    def text(self, tokens):
        """Embeddings of a batch of token ids."""
        config, (batch, length) = self.config.text, tokens.shape
        x = add(take(self.nodes["text.embedding"], tokens), take(self.nodes["text.position"], np.s_[:length]))
        x = self.blocks("text", x, config, np.tri(length, dtype=bool) if config.causal else None)
        x = self.norm("text.norm", x, config.norm_eps)
        last = (tokens == config.end_id).argmax(axis=1) if config.pool == "end" else np.full(batch, length - 1)
        return unit(self.linear("text.projection", take(x, (np.arange(batch), last))))

    def loss(self, raw, tokens, kind):
        """The contrastive loss of the whole batch, straight from the formula of its paper."""
        images, texts = self.image(raw), self.text(tokens)
        batch = len(raw)
        logits = multiply(matmul(images, transpose(texts, (1, 0))), exp(self.nodes["logit_scale"]))
        if kind == "sigmoid":
            logits = add(logits, self.nodes["logit_bias"])
            signed = multiply(logits, Node(2 * np.eye(batch) - 1))
            return scale(total(log_sigmoid(signed)), -1 / batch)
        own = Node(np.eye(batch) / batch)
        rows, columns = log_softmax(logits), log_softmax(transpose(logits, (1, 0)))
        return scale(add(total(multiply(rows, own)), total(multiply(columns, own))), -0.5)


def _sincos(rows, cols, width):
    """big_vision's table: sine and cosine of the column, then of the row; frequencies 10000^(-i / (width/4 - 1))."""
    omega = 10000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    table = []
    for row in range(rows):
        for col in range(cols):
            table.append(
                np.concatenate([np.sin(col * omega), np.cos(col * omega), np.sin(row * omega), np.cos(row * omega)])
            )
    return np.array(table)


def loss_and_gradients(config, arrays, raw, tokens, kind):
    """The loss of a batch and its gradient for every array."""
    model = Clip(config, arrays)
    loss = model.loss(raw, tokens, kind)
    loss.run_backward()
    return float(loss.value), {name: node.grad for name, node in model.nodes.items()}


def learning_rate(step, *, peak, warmup, steps, first):
    """Linear warmup from step / warmup or (step + 1) / warmup, then a half cosine that reaches 0 at `steps`."""
    if step < warmup:
        return peak * (step + (first == "fraction")) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def decays(name, array, decay_set):
    """Whether weight decay touches an array.

    matrices: big_vision's pattern `.*/kernel`. all_but_norms: open_clip's, whatever has two or more dimensions in its
    models, where blocks are not stacked and the probe has the shape (1, 1, dim).
    """
    if decay_set == "matrices":
        return name.endswith(".weight")
    return name.endswith(".probe") or array.ndim - (".blocks." in name) >= 2


class AdamW:
    """Adam with decoupled decay (Loshchilov & Hutter, arXiv 1711.05101), moments corrected for their start at zero."""

    def __init__(self, arrays, *, b1, b2, eps, decay, decay_set):
        self.first = {name: np.zeros_like(array) for name, array in arrays.items()}
        self.second = {name: np.zeros_like(array) for name, array in arrays.items()}
        self.b1, self.b2, self.eps, self.decay, self.decay_set = b1, b2, eps, decay, decay_set
        self.count = 0

    def step(self, arrays, grads, rate):
        """The arrays after one update."""
        self.count += 1
        updated = {}
        for name, array in arrays.items():
            self.first[name] = self.b1 * self.first[name] + (1 - self.b1) * grads[name]
            self.second[name] = self.b2 * self.second[name] + (1 - self.b2) * grads[name] ** 2
            mean, square = self.first[name] / (1 - self.b1**self.count), self.second[name] / (1 - self.b2**self.count)
            step = mean / (np.sqrt(square) + self.eps)
            if decays(name, array, self.decay_set):
                step = step + self.decay * array
            updated[name] = array - rate * step
        return updated
