"""Which form of attention is fastest at which length and head size?

Forward, and forward with backward, of self-attention over a batch, between the projections:

- attend: the library's, plain XLA.
- xla, cudnn: `jax.nn.dot_product_attention` in these implementations; cudnn only on a GPU, in bfloat16.

And the projections to queries, keys and values: fused in one product, or three apart. float32 on a CPU, bfloat16 on a
GPU. Rounds are interleaved; times are for the whole batch.

    python benchmarks/attention.py [--lengths 8 17 50] [--head_sizes 64 80] [--heads 6] [--batch 128]
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import write_record

from clipa_eqx.host_memory import keep_freed_memory
from clipa_eqx.nn import attend


LENGTHS = {"cpu": (8, 17, 50, 197), "gpu": (5, 8, 17, 37, 50, 65, 197, 257, 577)}
HEAD_SIZES = {"cpu": (64,), "gpu": (64, 80, 88, 104)}


def forms(backend: str) -> dict[str, Callable[..., jax.Array]]:
    """Attention of a batch of queries, keys and values."""
    named: dict[str, Callable[..., jax.Array]] = {
        "attend": jax.vmap(attend),
        "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    }
    if backend == "gpu":
        named["cudnn"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return named


def three_products(tokens: jax.Array, weight: jax.Array) -> jax.Array:
    """Queries, keys and values side by side, from one product each."""
    return jnp.concatenate([tokens @ part for part in jnp.split(weight, 3, axis=1)], axis=-1)


PROJECTIONS: dict[str, Callable[..., jax.Array]] = {"fused": jnp.matmul, "three": three_products}


def calls(function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...]) -> dict[str, Callable[[], Any]]:
    """The function compiled forward, and with its gradient for all arguments."""
    total = lambda *arrays: jnp.sum(function(*arrays).astype(jnp.float32) ** 2)
    both = jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arrays)))))
    return {"forward": functools.partial(jax.jit(function), *arrays), "both": functools.partial(both, *arrays)}


def times(named: dict[str, Callable[[], Any]], rounds: int, turn_s: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: median and extremes over rounds in turns."""

    def seconds(call: Callable[[], Any], repeats: int) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(call())
        return (time.perf_counter() - began) / repeats

    repeats: dict[str, int] = {}
    for name, call in named.items():
        seconds(call, 1)
        repeats[name] = max(1, round(turn_s / seconds(call, 1)))
    found: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, call in named.items():
            found[name].append(1e3 * seconds(call, repeats[name]))
    return {
        name: {"ms": round(statistics.median(ms), 3), "ms_least": round(min(ms), 3), "ms_most": round(max(ms), 3)}
        for name, ms in found.items()
    }


def main() -> None:
    """Measure every length and head size; print and record."""
    keep_freed_memory()
    backend = jax.default_backend()
    dtype = jnp.bfloat16 if backend == "gpu" else jnp.float32
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS.get(backend, LENGTHS["gpu"]))
    parser.add_argument("--head_sizes", type=int, nargs="+", default=HEAD_SIZES.get(backend, HEAD_SIZES["gpu"]))
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn_s", type=float, default=0.2, help="seconds of one form's turn in a round")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    for head_size in arguments.head_sizes:
        for length in arguments.lengths:
            shape = (arguments.batch, length, arguments.heads, head_size)
            queries, keys, values = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
            width = arguments.heads * head_size
            tokens = jnp.asarray(rng.normal(size=(arguments.batch, length, width)), dtype)
            weight = jnp.asarray(rng.normal(size=(width, 3 * width)) * width**-0.5, dtype)
            named = {
                f"{form} {part}": call
                for form, function in forms(backend).items()
                for part, call in calls(function, (queries, keys, values)).items()
            }
            named |= {
                f"{form} {part}": call
                for form, function in PROJECTIONS.items()
                for part, call in calls(function, (tokens, weight)).items()
            }
            row = times(named, arguments.rounds, arguments.turn_s)
            sizes = {"length": length, "head_size": head_size, "heads": arguments.heads, "batch": arguments.batch}
            write_record(
                "attention", sizes | {"dtype": str(jnp.dtype(dtype)), "rounds": arguments.rounds, "forms": row}
            )
            print(f"length {length}, heads of {head_size}: ", end="")
            print("  ".join(f"{name} {figures['ms']}" for name, figures in row.items()))


if __name__ == "__main__":
    main()
