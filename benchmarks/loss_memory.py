"""How much memory do the forms of the contrastive losses need, and what does the smaller memory cost in time?

- memory: bytes that the compiled value and gradient needs beside its arguments and results, on one device, at the
  batches of CLIPA and above, width 1024, float32. The whole form keeps the logit matrix.
- spread: the same per device with the batch spread over 8 devices, texts gathered or passed around a ring.
- time: value and gradient of both forms at a batch where both fit, on unit vectors that are alike in pairs, in
  interleaved rounds; `processor_s` is processor time over all cores, which waiting does not count into.
- large: one value and gradient at batch 262144 that is really computed, at a width that ends in minutes.

Appends one JSON line per figure to results/loss_memory.json.

    python benchmarks/loss_memory.py [memory] [spread] [time] [large]
"""

import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array

from clipa_eqx.losses import sigmoid_contrastive, softmax_contrastive


WIDTH = 1024
TILE = 1024
TIME_BATCH = 8192
ROUNDS = 7
LARGE_BATCH, LARGE_WIDTH = 262_144, 16
GIB = 2**30

LOSSES: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "softmax": (softmax_contrastive, (3.0,)),
    "sigmoid": (sigmoid_contrastive, (2.3, -10.0)),
}
"""Each loss with its scalars: logarithm of the inverse temperature, bias."""


def with_gradient(name: str, **form: Any) -> tuple[Callable[..., Any], list[Array]]:
    """Value and gradient for every argument of a loss in one of its forms, and its scalar arguments."""
    loss, scalars = LOSSES[name]
    every = tuple(range(2 + len(scalars)))
    return jax.value_and_grad(functools.partial(loss, **form), argnums=every), [jnp.float32(x) for x in scalars]


def shape(batch: int, width: int, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    """Embeddings that are not there."""
    return jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=sharding)


def temporary_gib(compiled: jax.stages.Compiled) -> float:
    """Memory of a program beside its arguments and results."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError(f"The backend {jax.default_backend()!r} does not tell the memory of a compiled program.")
    return round(analysis.temp_size_in_bytes / GIB, 3)


def memory() -> Iterator[dict[str, Any]]:
    """Temporaries of the compiled value and gradient on one device."""
    for batch in (32_768, 65_536, 262_144):
        for name in LOSSES:
            for tile in (None, TILE):
                step, scalars = with_gradient(name, tile=tile)
                embed = shape(batch, WIDTH)
                compiled = jax.jit(step).lower(embed, embed, *scalars).compile()
                yield {
                    "loss": name,
                    "batch": batch,
                    "width": WIDTH,
                    "tile": tile,
                    "temporary_gib": temporary_gib(compiled),
                }


def spread() -> Iterator[dict[str, Any]]:
    """Temporaries per device of the compiled value and gradient on 8 devices."""
    mesh = Mesh(jax.devices("cpu"), ("data",))
    for batch in (65_536, 262_144):
        for name in LOSSES:
            for form in ({"tile": None, "ring": False}, {"tile": TILE, "ring": False}, {"tile": TILE, "ring": True}):
                loss, scalars = LOSSES[name]
                mean = lambda *arguments, loss=loss, form=form: jax.lax.pmean(
                    loss(*arguments, axis_name="data", **form), "data"
                )
                specs = (P("data"), P("data"), *(P() for _ in scalars))
                every = tuple(range(len(specs)))
                mapped = jax.shard_map(
                    jax.value_and_grad(mean, argnums=every), mesh=mesh, in_specs=specs, out_specs=(P(), specs)
                )
                embed = shape(batch, WIDTH, NamedSharding(mesh, P("data")))
                compiled = jax.jit(mapped).lower(embed, embed, *(jnp.float32(x) for x in scalars)).compile()
                yield {
                    "loss": name, "batch": batch, "width": WIDTH, "devices": 8, **form,
                    "temporary_gib_per_device": temporary_gib(compiled),
                }  # fmt: skip


def embeddings(batch: int, width: int) -> tuple[Array, Array]:
    """Unit vectors of images and texts, alike where they belong together."""
    shared, image, text = (jax.random.normal(key, (batch, width)) for key in jax.random.split(jax.random.key(0), 3))
    unit = lambda rows: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return unit(shared + image), unit(shared + text)


def timed() -> Iterator[dict[str, Any]]:
    """Whole against tiled, in turns."""
    image, text = embeddings(TIME_BATCH, WIDTH)
    for name in LOSSES:
        wall: dict[str, list[float]] = {"whole": [], "tiled": []}
        processor: dict[str, list[float]] = {"whole": [], "tiled": []}
        steps = {}
        for label, tile in (("whole", None), ("tiled", TILE)):
            step, scalars = with_gradient(name, tile=tile)
            steps[label] = functools.partial(jax.jit(step), image, text, *scalars)
            jax.block_until_ready(steps[label]())
        for _ in range(ROUNDS):
            for label, step in steps.items():
                start, start_processor = time.perf_counter(), time.process_time()
                jax.block_until_ready(step())
                wall[label].append(time.perf_counter() - start)
                processor[label].append(time.process_time() - start_processor)
        summary = {
            label: {
                "wall_s": [round(f(wall[label]), 3) for f in (min, statistics.median, max)],
                "processor_s": [round(f(processor[label]), 3) for f in (min, statistics.median, max)],
            }
            for label in steps
        }
        median = lambda times: statistics.median(times["tiled"]) / statistics.median(times["whole"])
        yield {
            "loss": name, "batch": TIME_BATCH, "width": WIDTH, "tile": TILE, "rounds": ROUNDS,
            "least_median_most": summary,
            "tiled_over_whole_wall": round(median(wall), 3),
            "tiled_over_whole_processor": round(median(processor), 3),
        }  # fmt: skip


def large() -> Iterator[dict[str, Any]]:
    """A batch far above what the whole form can hold, computed."""
    image, text = embeddings(LARGE_BATCH, LARGE_WIDTH)
    for name in LOSSES:
        step, scalars = with_gradient(name, tile=TILE)
        compiled = jax.jit(step).lower(image, text, *scalars).compile()
        start = time.perf_counter()
        value, gradients = jax.block_until_ready(compiled(image, text, *scalars))
        yield {
            "loss": name, "batch": LARGE_BATCH, "width": LARGE_WIDTH, "tile": TILE,
            "temporary_gib": temporary_gib(compiled),
            "seconds": round(time.perf_counter() - start, 1),
            "value": float(value),
            "finite": all(bool(jnp.isfinite(gradient).all()) for gradient in gradients),
        }  # fmt: skip


QUESTIONS = {"memory": memory, "spread": spread, "time": timed, "large": large}


def main() -> None:
    """Answer the questions named on the command line, or all."""
    target = Path(__file__).parent / "results" / "loss_memory.json"
    for question in sys.argv[1:] or QUESTIONS:
        for answer in QUESTIONS[question]():
            device = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
            record = {"question": question, **answer, **device, "python": platform.python_version()}
            with target.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
            print(question, "  ".join(f"{label} {value}" for label, value in answer.items()))


if __name__ == "__main__":
    main()
