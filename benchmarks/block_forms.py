"""In which form do transformer blocks train fastest: scanned or written out, over stacked arrays or separate ones?

A step is value and gradient of the softmax loss of both towers, without an optimiser. Forms:

- scan, unroll: the library's two ways to run blocks with stacked arrays.
- scan_dots: scan with remat="dots", which recomputes all but matrix products.
- scan_stored: scan over blocks that keep every intermediate of norms and GELU for the backward pass.
- separate: a Python loop over blocks with arrays of their own, as Flax models have; separate_stored: the same, keeping
  every intermediate.

The library's block computes one token where only one is read, as in the last block of these towers; the stored forms
compute all. The process keeps its freed memory, as `clipa train` does.

Rounds are interleaved, so that a busy machine slows all forms alike; `processor_ms` is processor time over all cores
per sample, which waiting does not count into. Prints a table and appends one JSON line per size to
results/block_forms.json.

    python benchmarks/block_forms.py [small] [tiny]
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.host_memory import keep_freed_memory
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.models import CLIP, make_clip, with_execution
from clipa_eqx.nn import attend, Block, LayerNorm, Linear
from clipa_eqx.sizes import text_size, vision_size


BATCH = 32
ROUNDS = 6
SIZES = {
    "small": CLIPConfig(384, vision_size("S", image_size=64), text_size("S")),
    "tiny": CLIPConfig(
        128,
        VisionConfig(64, 8, width=128, depth=4, heads=4, hidden=512),
        TextConfig(16, 4096, width=128, depth=4, heads=4, hidden=512),
    ),
}


def stored_block(block: Block, x: Array) -> Array:
    """A block in plain operations, for which the backward pass keeps what autodiff asks for."""

    def norm(layer: LayerNorm, x: Array) -> Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + layer.eps)
        plain = centred / deviation
        return plain if layer.scale is None or layer.bias is None else plain * layer.scale + layer.bias

    def linear(layer: Linear, x: Array) -> Array:
        y = x @ layer.weight
        return y if layer.bias is None else y + layer.bias

    tokens, dim = x.shape
    heads = block.attention.heads
    qkv = linear(block.attention.qkv, norm(block.attention_norm, x)).reshape(tokens, 3 * heads, dim // heads)
    x = x + linear(block.attention.out, attend(*jnp.split(qkv, 3, axis=1)).reshape(tokens, dim))
    hidden = jax.nn.gelu(linear(block.mlp.widen, norm(block.mlp_norm, x)))
    return x + linear(block.mlp.narrow, hidden)


class ScannedStored(eqx.Module):
    """`stored_block` over stacked arrays."""

    blocks: Block

    def __call__(self, x: Array, mask: None = None, *, key: None = None) -> Array:
        return jax.lax.scan(lambda x, block: (stored_block(block, x), None), x, self.blocks)[0]

    def one(self, x: Array, at: int, mask: None = None, *, key: None = None) -> Array:
        return self(x)[at]


class Separate(eqx.Module):
    """Blocks with arrays of their own."""

    blocks: list[Block]
    stored: bool = eqx.field(static=True)

    def __call__(self, x: Array, mask: None = None, *, key: None = None) -> Array:
        for block in self.blocks:
            x = stored_block(block, x) if self.stored else block(x)
        return x

    def one(self, x: Array, at: int, mask: None = None, *, key: None = None) -> Array:
        if self.stored:
            return self(x)[at]
        *before, last = self.blocks
        return last.one(Separate(before, self.stored)(x), at)


def separate(blocks: Block, *, stored: bool) -> Separate:
    """Take stacked blocks apart."""
    depth = blocks.attention.qkv.weight.shape[0]
    return Separate([jax.tree.map(lambda leaf, at=at: leaf[at].copy(), blocks) for at in range(depth)], stored)


def with_stacks(model: CLIP, make: Callable[[Block], eqx.Module]) -> CLIP:
    """The model with both block stacks replaced."""
    stacks = (make(model.vision.stack.blocks), make(model.text.stack.blocks))
    return eqx.tree_at(lambda clip: (clip.vision.stack, clip.text.stack), model, stacks)


def loss(model: CLIP, pixels: Array, tokens: Array) -> Array:
    """Softmax loss of a batch."""
    image, text = jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(tokens)
    return softmax_contrastive(image, text, model.logit_scale)


def measure(config: CLIPConfig) -> dict[str, dict[str, float]]:
    """Compile every form, then time them in turns."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.02, jnp.float32), shapes)
    side = config.vision.image_size
    pixels = jnp.asarray(rng.normal(size=(BATCH, side, side, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(1, config.text.vocab_size, (BATCH, config.text.context_length)))
    forms: dict[str, CLIP] = {
        "scan": with_execution(model, layers="scan"),
        "unroll": with_execution(model, layers="unroll"),
        "scan_dots": with_execution(model, layers="scan", remat_image="dots", remat_text="dots"),
        "scan_stored": with_stacks(model, ScannedStored),
        "separate": with_stacks(model, lambda blocks: separate(blocks, stored=False)),
        "separate_stored": with_stacks(model, lambda blocks: separate(blocks, stored=True)),
    }
    results: dict[str, dict[str, float]] = {}
    steps: dict[str, Any] = {}
    values = []
    for name, form in forms.items():
        start = time.process_time()
        steps[name] = jax.jit(jax.value_and_grad(loss)).lower(form, pixels, tokens).compile()
        results[name] = {
            "compile_s": round(time.process_time() - start, 1),
            "memory_mb": round(steps[name].memory_analysis().temp_size_in_bytes / 1e6),
        }
        values.append(float(steps[name](form, pixels, tokens)[0]))
    if not all(math.isclose(value, values[0], rel_tol=1e-4) for value in values):
        raise RuntimeError(f"The forms disagree: {values}.")
    wall: dict[str, list[float]] = {name: [] for name in forms}
    processor: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            start, start_processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(steps[name](form, pixels, tokens))
            wall[name].append((time.perf_counter() - start) / BATCH)
            processor[name].append((time.process_time() - start_processor) / BATCH * 1e3)
    for name, result in results.items():
        result["samples_per_s"] = round(1 / statistics.median(wall[name]), 1)
        result["samples_per_s_best"] = round(1 / min(wall[name]), 1)
        result["processor_ms"] = round(statistics.median(processor[name]), 2)
        result["processor_ms_best"] = round(min(processor[name]), 2)
        result["processor_ms_worst"] = round(max(processor[name]), 2)
    return results


def main() -> None:
    """Measure the sizes named on the command line, or all."""
    target = Path(__file__).parent / "results" / "block_forms.json"
    target.parent.mkdir(exist_ok=True)
    keep_freed_memory()
    for size in sys.argv[1:] or SIZES:
        results = measure(SIZES[size])
        record = {
            "size": size,
            "batch": BATCH,
            "rounds": ROUNDS,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "python": platform.python_version(),
            "forms": results,
        }
        with target.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{size}: batch {BATCH}, {record['device']}, jax {jax.__version__}")
        for name, result in results.items():
            print(f"  {name:16}", "  ".join(f"{label} {value:g}" for label, value in result.items()))


if __name__ == "__main__":
    main()
