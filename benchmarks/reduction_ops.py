"""What share of a training step does token reduction take?

Every image and text reduction as the step runs it, jitted over a batch: positions drawn per row, then the patches or
token ids taken at them. Beside each stands a plain gather at fixed positions, and the whole S/16 step at that batch,
whose sequences (16 of 49 patches, 8 of 32 token ids) are among the shortest of CLIPA's: the step is cheap, so shares
are high. `share` counts the reduction with its gather; the aim is less than 2 %. Rounds are interleaved.

    python benchmarks/reduction_ops.py [--batch 256] [--rounds 5]
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

from _common import write_record
from _sizes import Case, model_config, random_batch, stage_config

from clipa_eqx.host_memory import keep_freed_memory


CASE = Case("clipa-s16", 112, 8, keep_patches=16)
GRID = (7, 7)
CAPTION_TOKENS = 32
REPEATS = 20


def reductions(batch: int) -> dict[str, Callable[[], Any]]:
    """Each reduction, and the plain gathers, as a call on prepared arrays."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from clipa_eqx.reduction import keep_patches, keep_tokens, take_patches

    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), batch)
    patches = jnp.asarray(rng.normal(size=(batch, GRID[0] * GRID[1], 768)), jnp.float32)
    lengths = rng.integers(5, CAPTION_TOKENS + 1, (batch, 1))
    tokens = jnp.asarray(np.where(np.arange(CAPTION_TOKENS) < lengths, rng.integers(1, 30000, (batch, 1)), 0))
    word_class = jnp.asarray(rng.integers(0, 4, (batch, CAPTION_TOKENS)))
    kept = jnp.asarray(np.tile(np.arange(CASE.keep_patches) * 3, (batch, 1)))
    positions = jnp.asarray(np.tile(np.arange(CASE.text_length) * 4, (batch, 1)))

    def image(name: str) -> Callable[[], Any]:
        one = lambda x, key: take_patches(x, keep_patches(name, GRID, CASE.keep_patches, key=key))  # pyright: ignore
        return functools.partial(jax.jit(jax.vmap(one)), patches, keys)

    def text(name: str) -> Callable[[], Any]:
        def one(ids: Any, priority: Any, key: Any) -> Any:
            chosen: Any = name
            return ids[keep_tokens(chosen, ids, CASE.text_length, priority=priority, pad_id=0, end_id=None, key=key)]

        return functools.partial(jax.jit(jax.vmap(one)), tokens, word_class, keys)

    return {
        "image gather": functools.partial(jax.jit(jax.vmap(take_patches)), patches, kept),
        **{f"image {name}": image(name) for name in ("random", "grid", "block")},
        "text gather": functools.partial(jax.jit(jax.vmap(lambda ids, at: ids[at])), tokens, positions),
        **{f"text {name}": text(name) for name in ("truncate", "random", "block", "syntax")},
    }


def whole_step(batch: int) -> Callable[[], Any]:
    """A training step with random patches and truncated texts."""
    import equinox as eqx
    import jax

    from clipa_eqx.models import make_clip
    from clipa_eqx.sharding import make_mesh, replicate, to_global
    from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step

    stage = stage_config(CASE, batch, "float32")
    mesh = make_mesh()
    model = eqx.filter_jit(make_clip)(model_config(CASE), key=jax.random.key(0))
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=jax.random.key(1)), mesh)
    rows = random_batch(CASE._replace(text_length=CAPTION_TOKENS), batch)
    step = make_train_step(stage, schedule, optimizer, mesh)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, to_global(rows, mesh))
        return metrics

    return run


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Wall time of one call."""
    import jax

    began = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / repeats


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    calls = reductions(arguments.batch) | {"step": whole_step(arguments.batch)}
    repeats = {name: 1 if name == "step" else REPEATS for name in calls}
    for call in calls.values():
        seconds(call, 2)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    step_s = statistics.median(times.pop("step"))
    rows = {
        name: {
            "ms": round(1e3 * statistics.median(values), 3),
            "ms_least": round(1e3 * min(values), 3),
            "ms_most": round(1e3 * max(values), 3),
            "share": round(statistics.median(values) / step_s, 5),
        }
        for name, values in times.items()
    }
    worst = max(rows, key=lambda name: rows[name]["share"])
    write_record(
        "reduction_ops",
        {"batch": arguments.batch, "rounds": arguments.rounds, "step_ms": round(1e3 * step_s, 1)}
        | {"worst": worst, "worst_share": rows[worst]["share"], "reductions": rows},
    )
    print(f"step {1e3 * step_s:.0f} ms")
    for name, row in rows.items():
        print(f"{name:16} {row['ms']:9.3f} ms ({row['ms_least']} to {row['ms_most']})   {100 * row['share']:.3f} %")


if __name__ == "__main__":
    main()
