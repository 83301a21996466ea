"""Fine-tune a model by low-rank updates (LoRA, Hu et al., arXiv 2106.09685) on a folder of name.jpg with name.txt.

    python experiments/lora.py WEIGHTS FOLDER OUT

OUT is a plain model again, in the form of a run: the updates are added to the weights that they were made for.
"""

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from clipa_eqx import load_pretrained, losses
from clipa_eqx.interop import save_pretrained
from clipa_eqx.nn import Linear


class LoRA(eqx.Module):
    """A frozen layer plus a learned product of two thin matrices, which starts at zero; stacked like the layer."""

    frozen: Linear
    down: jax.Array
    up: jax.Array

    def __init__(self, frozen, rank, *, key):
        *stack, inputs, outputs = frozen.weight.shape
        self.frozen, self.up = frozen, jnp.zeros((*stack, rank, outputs))
        self.down = jax.random.normal(key, (*stack, inputs, rank)) * inputs**-0.5

    def __call__(self, x):
        return jax.lax.stop_gradient(self.frozen)(x) + (x @ self.down) @ self.up

    def merged(self):
        return eqx.tree_at(lambda layer: layer.weight, self.frozen, self.frozen.weight + self.down @ self.up)


def layers(clip):
    blocks = [tower.stack.blocks for tower in (clip.vision, clip.text)]
    return [part for b in blocks for part in (b.attention.qkv, b.attention.out, b.mlp.widen, b.mlp.narrow)]


def main(weights, folder, out, steps=20, batch=8, rank=4):
    start, key = load_pretrained(weights), jax.random.key(0)
    clip = eqx.tree_at(layers, start.model, [LoRA(x, rank, key=jax.random.fold_in(key, x.weight.size)) for x in layers(start.model)])
    learned = lambda clip: [array for lora in layers(clip) for array in (lora.down, lora.up)]
    spec = eqx.tree_at(learned, jax.tree.map(lambda _: False, clip), replace_fn=lambda _: True)
    optimizer = optax.adam(1e-3)
