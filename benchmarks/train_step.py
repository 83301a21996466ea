"""How many samples per second does a training step take, beside CLIPA's Flax modules and open_clip?

A step takes raw uint8 pixels and token ids, and ends with updated weights: normalisation, both towers, softmax loss,
gradients, global gradient norm, AdamW. All take the same sizes, tokens, batch and number type.

- ours: `make_train_step` as `clipa train` runs it; on a CPU that is in a process that keeps what it frees.
- flax: CLIPA's own modules and loss (`--clipa PATH/clipa_jax`, a checkout of UCSC-VLAA/CLIPA; needs flax), jitted with
  donated state, the same optax optimiser, blocks not rematerialised.
- open_clip: its model and loss with torch's fused AdamW; on a GPU with `torch.compile` and amp bfloat16.

`--keep_memory all` gives the peers the same memory as ours, which their own code does not; `none` takes it from ours.

    python benchmarks/train_step.py --clipa ../CLIPA/clipa_jax                      # the CPU cases
    python benchmarks/train_step.py --cases l16:4096 h14:2048 --dtype bfloat16      # on a GPU
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import rates, serve, take_turns, times_as_fast, Worker, write_record
from _peers import flax_model, open_clip_model
from _sizes import CASES, model_config, random_batch, stage_config

from clipa_eqx.host_memory import keep_freed_memory


CPU_CASES = ("s16:32", "s16:128", "b16:16")


def ours(arguments: argparse.Namespace, name: str, batch: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """The library's step, through its public parts."""
    import equinox as eqx
    import jax

    from clipa_eqx.config import RunConfig
    from clipa_eqx.models import make_clip, with_execution
    from clipa_eqx.sharding import make_mesh, replicate, to_global
    from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step, model_flops

    case = CASES[name]
    config, stage = model_config(case), stage_config(case, batch, arguments.dtype)
    mesh = make_mesh()
    model = with_execution(
        eqx.filter_jit(make_clip)(config, key=jax.random.key(0)),
        layers=arguments.layers,
        remat_image=arguments.remat,
        remat_text=arguments.remat,
    )
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=jax.random.key(1)), mesh)
    host = random_batch(case, batch)
    began = time.perf_counter()
    step = make_train_step(stage, schedule, optimizer, mesh).lower(state, to_global(host, mesh)).compile()
    compile_s = time.perf_counter() - began

    def run(steps: int) -> None:
        nonlocal state
        metrics = {}
        for _ in range(steps):
            state, metrics = step(state, to_global(host, mesh))
        jax.block_until_ready(metrics)

    memory = step.memory_analysis()
    facts = {
        "compile_s": round(compile_s, 1),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6) if memory else None,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "flops": model_flops(RunConfig(model=config), stage),
    }
    return run, facts


def flax(arguments: argparse.Namespace, name: str, batch: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """CLIPA's modules, with a step of our own around them."""
    import jax
    import jax.numpy as jnp
    import optax

    case = CASES[name]
    config, stage = model_config(case), stage_config(case, batch, arguments.dtype)
    module, loss_of = flax_model(config, arguments.clipa)
    host = random_batch(case, batch)
    mean, std = (jnp.asarray(value) * 255 for value in (config.vision.pixel_mean, config.vision.pixel_std))

    def loss(params: Any, pixels: Any, tokens: Any) -> Any:
        image, text, extras = module.apply({"params": params}, (pixels.astype(jnp.float32) - mean) / std, tokens)
        value, extras = loss_of(image, text, extras["t"], reduction=True)
        return value, extras["ncorrect"]

    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros(host["pixels"].shape), host["tokens"])["params"]
    optim = stage.optim
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0, optim.learning_rate, optim.warmup_steps, stage.steps),
        b1=optim.b1,
        b2=optim.b2,
        weight_decay=optim.weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params),
    )

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        (value, correct), grads = jax.value_and_grad(loss, has_aux=True)(params, batch["pixels"], batch["tokens"])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (value, correct, optax.global_norm(grads))

    state = (params, jax.jit(optimizer.init)(params))
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, jax.device_put(host)).compile()
    compile_s = time.perf_counter() - began

    def run(steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(steps):
            *new, metrics = compiled(*state, jax.device_put(host))
            state = tuple(new)
        jax.block_until_ready(metrics)

    return run, {"compile_s": round(compile_s, 1)}


def open_clip(arguments: argparse.Namespace, name: str, batch: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """open_clip's model and loss, with torch's AdamW."""
    import torch

    case = CASES[name]
    config = model_config(case)
    optim = stage_config(case, batch, arguments.dtype).optim
    model = open_clip_model(config)
    from open_clip.loss import ClipLoss  # importable once the model's stand-ins are

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    loss_of = ClipLoss()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        fused=True,
    )
    forward = torch.compile(model) if device == "cuda" else model
    host = random_batch(case, batch)
    pixels, tokens = torch.from_numpy(host["pixels"]), torch.from_numpy(host["tokens"]).long()
    if device == "cuda":
        pixels, tokens = pixels.pin_memory(), tokens.pin_memory()
    mean, std = (
        torch.tensor(value, device=device)[:, None, None] * 255
        for value in (config.vision.pixel_mean, config.vision.pixel_std)
    )
    half = arguments.dtype == "bfloat16"

    def run(steps: int) -> None:
        loss: Any = None
        for _ in range(steps):
            image = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
            text = tokens.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=half):
                image_embed, text_embed, scale = forward((image - mean) / std, text)[:3]
                loss = loss_of(image_embed, text_embed, scale)
            loss.backward()
            optimizer.step()
        float(loss.detach())

    began = time.perf_counter()
    run(1)
    return run, {"compile_s": round(time.perf_counter() - began, 1), "threads": torch.get_num_threads()}


PEERS = {"ours": ours, "flax": flax, "open_clip": open_clip}


def measure(arguments: argparse.Namespace, case: str) -> None:
    """Run one case: all contestants in turns, one record."""
    name, _, batch = case.partition(":")
    workers = []
    for peer in arguments.peers:
        passed = ["--worker", peer, "--cases", case, "--dtype", arguments.dtype, "--remat", arguments.remat]
        passed += ["--layers", arguments.layers, "--keep_memory", arguments.keep_memory]
        passed += ["--clipa", str(arguments.clipa)] if arguments.clipa else []
        workers.append(Worker(peer, passed))
    turns = take_turns(workers, rounds=arguments.rounds, turn_s=arguments.turn_s)
    row: dict[str, Any] = {"case": name, "batch": int(batch), "dtype": arguments.dtype, "rounds": arguments.rounds}
    row |= {"layers": arguments.layers, "remat": arguments.remat, "keep_memory": arguments.keep_memory}
    row |= {"image_size": CASES[name].image_size, "text_length": CASES[name].text_length}
    for worker in workers:
        row[worker.name] = rates(turns[worker.name], int(batch)) | worker.facts
        worker.close()
    if "ours" in turns:
        row["times_as_fast"] = {
            peer: times_as_fast(turns["ours"], turns[peer]) for peer in arguments.peers if peer != "ours"
        }
    write_record("train_step", row)
    print(f"{name}, batch {batch}, {arguments.dtype}: times as fast as {row.get('times_as_fast')}")
    for peer in arguments.peers:
        print(f"  {peer:10}", "  ".join(f"{label} {value}" for label, value in row[peer].items()))


def main() -> None:
    """Measure the cases, or be one contestant of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CPU_CASES, help="NAME:BATCH, names: " + ", ".join(CASES))
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--clipa", type=Path, help="folder clipa_jax of a checkout of UCSC-VLAA/CLIPA")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--layers", default="auto", choices=("auto", "scan", "unroll"))
    parser.add_argument("--remat", default="none", choices=("none", "full", "dots", "dots_no_batch"))
    parser.add_argument("--keep_memory", default="ours", choices=("ours", "all", "none"), help="who keeps freed memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn_s", type=float, default=5.0, help="seconds of one contestant's turn in a round")
    parser.add_argument("--worker", choices=list(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        if arguments.keep_memory == "all" or arguments.keep_memory == arguments.worker:
            keep_freed_memory()
        name, _, batch = arguments.cases[0].partition(":")
        serve(*PEERS[arguments.worker](arguments, name, int(batch)))
        return
    if "flax" in arguments.peers and arguments.clipa is None:
        print("flax is left out: give --clipa PATH/clipa_jax, a checkout of UCSC-VLAA/CLIPA.")
        arguments.peers.remove("flax")
    for case in arguments.cases:
        measure(arguments, case)


if __name__ == "__main__":
    main()
