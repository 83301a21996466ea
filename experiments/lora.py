"""Fine-tune by low-rank updates (LoRA, Hu et al., arXiv 2106.09685): lora.py WEIGHTS FOLDER_OF_JPG_AND_TXT OUT STEPS"""

import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from clipa_eqx import CLIP, load_pretrained, losses
from clipa_eqx.interop import save_pretrained


class LoRA(eqx.Module):
    """A frozen layer plus a product of two thin matrices, zero at first; stacked over blocks as the layer is."""

    frozen: PyTree
    down: Float[Array, "*stack inputs rank"]
    up: Float[Array, "*stack rank outputs"]

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        return self.frozen(x) + (x @ self.down) @ self.up


def layers(clip: CLIP) -> PyTree:
    blocks = (clip.vision.stack.blocks, clip.text.stack.blocks)
    return [layer for b in blocks for layer in (b.attention.qkv, b.attention.out, b.mlp.widen, b.mlp.narrow)]


def main(weights: str, folder: str, out: str, steps: str) -> None:
    given, paths = load_pretrained(weights), sorted(Path(folder).glob("*.jpg"))
    pixels = jnp.stack([given.preprocess(path) for path in paths])
    tokens = jnp.asarray(given.tokenizer([path.with_suffix(".txt").read_text() for path in paths]))
    updates = lambda clip: [array for layer in layers(clip) for array in (layer.down, layer.up)]
    thin = lambda w, key: (0.02 * jax.random.normal(key, w[..., :4].shape), jnp.zeros_like(w[..., :4, :]))
    wrapped = [LoRA(x, *thin(x.weight, jax.random.key(seed))) for seed, x in enumerate(layers(given.model))]
    clip = eqx.tree_at(layers, given.model, wrapped)

    def loss(learned: list[Array], clip: CLIP) -> Array:
        clip = eqx.tree_at(updates, clip, learned)
        images, texts = jax.vmap(clip.encode_image)(pixels), jax.vmap(clip.encode_text)(tokens)
        return losses.softmax_contrastive(images, texts, clip.logit_scale)

    optimizer, value_and_grad = optax.adam(1e-3), jax.jit(jax.value_and_grad(loss))
    state = optimizer.init(updates(clip))
    for number in range(int(steps)):
        value, gradient = value_and_grad(updates(clip), clip)
        change, state = optimizer.update(gradient, state)
        clip = eqx.tree_at(updates, clip, jax.tree.map(jnp.add, updates(clip), change))
        print(f"step {number}: loss {float(value):.4f}")
    merged = [eqx.tree_at(lambda layer: layer.weight, x.frozen, x.frozen.weight + x.down @ x.up) for x in layers(clip)]
    save_pretrained(replace(given, model=eqx.tree_at(layers, given.model, merged)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
