"""Does one step need the memory that the plan says?

The plan reads a step's temporaries off the compiled program. Here the same step runs, and the growth of the process's
resident memory at its peak is held beside that figure. On a GPU the device's own high-water mark is taken, state and
batch included. Linux only, for the CPU.

    python benchmarks/plan_memory.py [S/16] [pairs per step]
"""

import ctypes
import gc
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from _common import write_record

from clipa_eqx.config import OptimConfig, RunConfig, stage_model, StageConfig
from clipa_eqx.models import make_clip, with_execution
from clipa_eqx.sharding import make_mesh, replicate, to_global
from clipa_eqx.sizes import clip_size
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step, step_memory


MIB = 2**20
IMAGE_SIZE, TEXT_LENGTH = 112, 16


def resident_bytes(key: str) -> int:
    """A figure of this process's memory as Linux has it: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def forget_peak() -> None:
    """Give freed memory back, and let the peak begin at what is resident now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Plan a step, run it, compare."""
    size = sys.argv[1] if len(sys.argv) > 1 else "S/16"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 384
    model_config = clip_size(size, vision={"image_size": IMAGE_SIZE}, text={"context_length": TEXT_LENGTH})
    optim = OptimConfig(warmup_steps=1)
    stage = StageConfig(
        samples=100 * pairs, batch_size=pairs, image_size=IMAGE_SIZE, text_length=TEXT_LENGTH, optim=optim
    )
    run, mesh = RunConfig(model=model_config, stages=(stage,)), make_mesh(jax.devices()[:1])
    plan = step_memory(run, stage, mesh)

    schedule = make_schedule(optim, stage.steps)
    model = with_execution(eqx.filter_jit(make_clip)(stage_model(run, stage), key=jax.random.key(0)))
    optimizer = make_optimizer(optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=jax.random.key(1)), mesh)
    del model
    rng, length = np.random.default_rng(0), run.data.caption_tokens
    rows = {
        "pixels": rng.integers(0, 256, (stage.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8),
        "tokens": rng.integers(1, 1000, (stage.batch_size, length)).astype(np.int32),
        "word_class": rng.integers(0, 4, (stage.batch_size, length)).astype(np.uint8),
    }
    batch = to_global(rows, mesh)
    step = make_train_step(stage, schedule, optimizer, mesh).lower(state, batch).compile()
    jax.block_until_ready((state, batch))

    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        forget_peak()
        before, planned = resident_bytes("VmRSS"), plan.temporary
        jax.block_until_ready(step(state, batch))
        measured = resident_bytes("VmHWM") - before
    else:
        planned = plan.total
        jax.block_until_ready(step(state, batch))
        measured = device.memory_stats()["peak_bytes_in_use"]
    row = {
        "size": size,
        "batch": stage.batch_size,
        "planned_mib": round(planned / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "measured_over_planned": round(measured / planned, 3),
    }
    print(row)
    write_record("plan_memory", row)


if __name__ == "__main__":
    main()
