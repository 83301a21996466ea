"""How many images and texts per second do the encoders embed, beside open_clip's?

From raw uint8 pixels and token ids to unit vectors, in batches of which the last is padded to the shape of the others,
as evaluation does. Ours also checks that a padded batch gives the embeddings of the rows alone.

- ours: the two encoders vmapped and jitted; on a CPU in a process that keeps what it frees, as `clipa train` does.
- open_clip: `encode_image` and `encode_text` in inference mode; on a GPU compiled, in amp bfloat16.

    python benchmarks/inference.py                                      # on a CPU
    python benchmarks/inference.py --cases l16:1024 h14:512 --dtype bfloat16 --count 20000
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import rates, serve, take_turns, times_as_fast, Worker, write_record
from _peers import open_clip_model
from _sizes import CASES, model_config, random_batch

from clipa_eqx.host_memory import keep_freed_memory


SIDES = ("image", "text")


def ours(arguments: argparse.Namespace, name: str, batch: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """The library's encoders."""
    import equinox as eqx
    import jax

    from clipa_eqx.models import for_compute, make_clip, normalize_pixels, scale_pixels

    config = model_config(CASES[name])
    model = for_compute(eqx.filter_jit(make_clip)(config, key=jax.random.key(0)), arguments.dtype)
    rows = random_batch(CASES[name], arguments.count)["pixels" if arguments.side == "image" else "tokens"]

    def one(model: Any, row: Any) -> Any:
        if arguments.side == "text":
            return model.encode_text(row)
        return model.encode_image(normalize_pixels(scale_pixels(row), config.vision))

    embed = jax.jit(jax.vmap(one, in_axes=(None, 0)))

    def padded(first: int) -> np.ndarray:
        part = rows[first : first + batch]
        return np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])

    def run(steps: int) -> None:
        for _ in range(steps):
            embeds = [embed(model, padded(first)) for first in range(0, len(rows), batch)]
            np.concatenate([np.asarray(part) for part in embeds])[: len(rows)]

    last = len(rows) // batch * batch
    alone = np.asarray(embed(model, rows[last:]))
    np.testing.assert_allclose(np.asarray(embed(model, padded(last)))[: len(alone)], alone, atol=1e-6)
    began = time.perf_counter()
    run(1)
    return run, {"device": jax.devices()[0].device_kind, "first_s": round(time.perf_counter() - began, 2)}


def open_clip(arguments: argparse.Namespace, name: str, batch: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """open_clip's encoders."""
    import torch

    config = model_config(CASES[name])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_clip_model(config).to(device).eval()
    encode = model.encode_image if arguments.side == "image" else model.encode_text
    if device == "cuda":
        encode = torch.compile(encode)
    host = random_batch(CASES[name], arguments.count)
    rows = torch.from_numpy(host["pixels"]) if arguments.side == "image" else torch.from_numpy(host["tokens"]).long()
    mean, std = (
        torch.tensor(value, device=device)[:, None, None] * 255
        for value in (config.vision.pixel_mean, config.vision.pixel_std)
    )

    def embed(part: Any) -> Any:
        part = part.to(device, non_blocking=True)
        if arguments.side == "image":
            part = (part.permute(0, 3, 1, 2).float() - mean) / std
        return encode(part, normalize=True)

    def run(steps: int) -> None:
        half = torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16")
        with torch.inference_mode(), half:
            for _ in range(steps):
                torch.cat([embed(rows[first : first + batch]) for first in range(0, len(rows), batch)]).float().cpu()

    began = time.perf_counter()
    run(1)
    return run, {"threads": torch.get_num_threads(), "first_s": round(time.perf_counter() - began, 2)}


PEERS = {"ours": ours, "open_clip": open_clip}


def measure(arguments: argparse.Namespace, case: str, side: str) -> None:
    """Run one encoder of one case: both contestants in turns, one record."""
    name, _, batch = case.partition(":")
    passed = ["--cases", case, "--side", side, "--dtype", arguments.dtype, "--count", str(arguments.count)]
    workers = [Worker(peer, ["--worker", peer, *passed]) for peer in PEERS]
    turns = take_turns(workers, rounds=arguments.rounds, turn_s=arguments.turn_s)
    row: dict[str, Any] = {"case": name, "side": side, "batch": int(batch), "count": arguments.count}
    row |= {"dtype": arguments.dtype, "rounds": arguments.rounds}
    row |= {"image_size": CASES[name].image_size, "text_length": CASES[name].text_length}
    for worker in workers:
        row[worker.name] = rates(turns[worker.name], arguments.count) | worker.facts
        worker.close()
    row["times_as_fast"] = {"open_clip": times_as_fast(turns["ours"], turns["open_clip"])}
    write_record("inference", row)
    print(f"{name} {side}, batch {batch}, {arguments.dtype}: times as fast {row['times_as_fast']['open_clip']}")
    for peer in PEERS:
        print(f"  {peer:10}", "  ".join(f"{label} {value}" for label, value in row[peer].items()))


def main() -> None:
    """Measure the cases, or be one contestant of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=("s16:64",), help="NAME:BATCH, names: " + ", ".join(CASES))
    parser.add_argument("--count", type=int, default=500, help="rows to embed; no multiple of the batch")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn_s", type=float, default=4.0, help="seconds of one contestant's turn in a round")
    parser.add_argument("--side", default="image", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=list(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        if arguments.worker == "ours":
            keep_freed_memory()
        name, _, batch = arguments.cases[0].partition(":")
        serve(*PEERS[arguments.worker](arguments, name, int(batch)))
        return
    for case in arguments.cases:
        for side in SIDES:
            measure(arguments, case, side)


if __name__ == "__main__":
    main()
