"""How long does the same step take with CLIPA's own Flax modules?

Its towers and its loss, weights and pixels cast to bfloat16 inside the step as its accelerators compute, AdamW of optax
on float32 weights, the state donated. `remat` is the policy of its config: none, or actcp, with which it trains H/14.
"""

import functools
import math
import os
import time
import zlib
from pathlib import Path
from typing import Any

from _part import compiled_memory, Facts, jax_memory, keep_program, Measure, Options, step_times, take_part
from _sizes_gpu import sized


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Compile the step, and what draws the first weights."""
    import jax
    import jax.numpy as jnp
    import optax
    from _peers import flax_model

    checkout = os.environ.get("CLIPA")
    if checkout is None:
        raise ValueError("Its modules are not here: give --clipa PATH/clipa_jax, a checkout of UCSC-VLAA/CLIPA.")
    found = sized(options)
    module, loss_of = flax_model(found.run.model, Path(checkout), remat=options.get("remat", "none"))
    vision, optim = found.run.model.vision, found.stage.optim
    mean, std = (jnp.asarray(value) * 255 for value in (vision.pixel_mean, vision.pixel_std))
    host = found.pairs()
    half = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))

    def loss(params: Any, pixels: Any, tokens: Any) -> Any:
        normalized = ((pixels.astype(jnp.float32) - mean) / std).astype(jnp.bfloat16)
        image, text, extras = module.apply({"params": half(params)}, normalized, tokens)
        wide = (value.astype(jnp.float32) for value in (image, text, extras["t"]))
        value, extras = loss_of(*wide, reduction=True)
        return value, extras["ncorrect"]

    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0, optim.learning_rate, optim.warmup_steps, found.stage.steps),
        b1=optim.b1,
        b2=optim.b2,
        weight_decay=optim.weight_decay,
        mu_dtype=optim.moment_dtype,
        mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params),
    )

    def shapes() -> Any:
        shape = (1, *host["pixels"].shape[1:])
        return module.init(jax.random.key(0), jnp.zeros(shape), jnp.asarray(host["tokens"][:1]))["params"]

    normal = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape), static_argnums=1)

    def draw(path: Any, leaf: Any) -> Any:
        # Array by array, of which few differ in shape: its own init compiles for as long as its step.
        name = jax.tree_util.keystr(path)
        value = normal(jax.random.key(zlib.crc32(name.encode())), leaf.shape)
        return value + {"scale": 1.0, "t": math.log(1 / 0.07)}.get(path[-1].key, 0.0)

    def step(params: Any, opt_state: Any, pixels: Any, tokens: Any) -> Any:
        (value, correct), grads = jax.value_and_grad(loss, has_aux=True)(params, pixels, tokens)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (value, correct, optax.global_norm(grads))

    inputs = [jax.ShapeDtypeStruct(host[name].shape, host[name].dtype) for name in ("pixels", "tokens")]
    began = time.perf_counter()
    abstract = jax.eval_shape(shapes)
    compiled = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(abstract, jax.eval_shape(optimizer.init, abstract), *inputs)
        .compile()
    )
    compile_s = time.perf_counter() - began
    keep_program(compiled, options["name"])

    def measure() -> Facts:
        params = jax.tree_util.tree_map_with_path(draw, abstract)
        state = (params, optimizer.init(params))
        batch = [jax.device_put(host[name]) for name in ("pixels", "tokens")]
        before = {f"{name}_before": value for name, value in jax_memory().items()}
        losses = []

        def once() -> Any:
            nonlocal state
            *new, metrics = compiled(*state, *batch)
            state = tuple(new)
            losses.append(metrics[0])
            return metrics

        times = step_times(once, jax.block_until_ready)
        ends = {"first_loss": round(float(losses[0]), 4), "last_loss": round(float(losses[-1]), 4)}
        return times | before | jax_memory() | ends

    return {"pairs": found.batch, "compile_s": round(compile_s, 1)} | compiled_memory(compiled), measure


if __name__ == "__main__":
    take_part(prepare)
