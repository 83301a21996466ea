"""How long does a training step of this project take, and what does it hold, in one of its forms?"""

import time

from _part import compiled_memory, Facts, jax_memory, keep_program, Measure, Options, step_times, take_part
from _sizes_gpu import sized


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Compile the step as `clipa train` would, and what draws the first weights."""
    import equinox as eqx
    import jax

    from clipa_eqx.config import stage_model
    from clipa_eqx.models import make_clip
    from clipa_eqx.sharding import make_mesh, to_global
    from clipa_eqx.train import init_state, lower_step, make_optimizer, make_schedule, model_flops

    found = sized(options)
    mesh = make_mesh(jax.devices()[:1])
    began = time.perf_counter()
    lowered = lower_step(found.run, found.stage, mesh)
    lower_s = time.perf_counter() - began
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - began
    keep_program(compiled, options["name"])

    def start() -> list[jax.Array]:
        model = make_clip(stage_model(found.run, found.stage), key=jax.random.key(0))
        optimizer = make_optimizer(found.stage.optim, make_schedule(found.stage.optim, found.stage.steps), model)
        state = init_state(model, optimizer, averaged=model if found.stage.ema_decay else None, key=jax.random.key(1))
        return jax.tree.leaves(eqx.filter(state, eqx.is_array))

    # The arrays alone: how blocks are run is part of a state's structure, which the compiled step knows.
    place = jax.tree.leaves(compiled.input_shardings[0][0])
    begin = jax.jit(start, out_shardings=place).lower().compile()
    structure = jax.tree.structure(lowered.args_info[0][0])

    def measure() -> Facts:
        state = structure.unflatten(begin())
        batch = to_global(found.pairs(), mesh)
        jax.block_until_ready((state, batch))
        before = {f"{name}_before": value for name, value in jax_memory().items()}
        losses = []

        def step() -> jax.Array:
            nonlocal state
            state, metrics = compiled(state, batch)
            losses.append(metrics["loss"])
            return metrics["loss"]

        few = options.get("steps")
        times = step_times(step, jax.block_until_ready, **({"warm": 0, "steps": few} if few else {}))
        ends = {"first_loss": round(float(losses[0]), 4), "last_loss": round(float(losses[-1]), 4)}
        return times | before | jax_memory() | ends

    facts = {
        "pairs": found.batch,
        "model_flops": model_flops(found.run, found.stage),
        "lower_s": round(lower_s, 1),
        "compile_s": round(compile_s, 1),
    }
    return facts | compiled_memory(compiled), measure


if __name__ == "__main__":
    take_part(prepare)
