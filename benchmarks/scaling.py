"""What passes between devices in one training step, and does it grow with their number?

Reads the collectives of the compiled step for 1 to 256 virtual devices with a fixed batch per device, for replicated
and sharded state. The payload of a collective is the whole array that it moves or adds up: its own share reaches each
device whatever their number. Expected per step: replicated, one pass over the gradients and two over the texts'
embeddings; shard="all", three passes over the matrices (weights for the forward and for the backward pass, gradients).

Prints a table, writes results/scaling.svg and appends one JSON line per row to results/scaling.json.

    python benchmarks/scaling.py [DEVICES ...]
"""

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from clipa_eqx.config import CLIPConfig, OptimConfig, RunConfig, StageConfig, TextConfig, VisionConfig
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train import lower_step


COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PAIRS_PER_DEVICE = 8
WIDTH = 256
SHARDS = ("none", "optimizer", "all")
RESULTS = Path(__file__).parent / "results"

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1}
_COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>\S+) \(.*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%([^\s,)]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def collectives(program: str, num_devices: int) -> dict[str, dict[str, int]]:
    """Count and payload in bytes of each kind of collective in a compiled program, as HLO text; a loop's body counts
    once for each time that it runs."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            name = head["name"]
            entry = name if head["entry"] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)

    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})

    def add(computation: str, times: int) -> None:
        for line in bodies.get(computation, []):
            line = re.sub(r"/\*.*?\*/", "", line)
            if match := _COLLECTIVE.search(line):
                # The result of a scatter is one device's share of what was added up.
                whole = num_devices if match["kind"] == "reduce-scatter" else 1
                found[match["kind"]]["count"] += times
                found[match["kind"]]["bytes"] += times * whole * _size(match["shapes"])
                continue
            trips = _TRIPS.search(line) if " while(" in line else None
            for called in _CALLED.findall(line):
                add(called, times * int(trips[1]) if trips else times)

    add(entry, 1)
    return dict(found)


def _size(shapes: str) -> int:
    return sum(
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in _SHAPE.findall(shapes)
    )


def run_of(num_devices: int) -> RunConfig:
    """A small CLIP, its blocks scanned as in training."""
    tower: dict[str, Any] = {"width": WIDTH, "depth": 2, "heads": 4, "hidden": 4 * WIDTH}
    model = CLIPConfig(embed=WIDTH, vision=VisionConfig(32, 8, **tower), text=TextConfig(8, vocab_size=1024, **tower))
    stage = StageConfig(
        samples=100 * num_devices * PAIRS_PER_DEVICE,
        batch_size=num_devices * PAIRS_PER_DEVICE,
        image_size=32,
        text_length=8,
        optim=OptimConfig(warmup_steps=1),
    )
    return RunConfig(model=model, stages=(stage,))


def measure(num_devices: int) -> list[dict[str, Any]]:
    """A row per layout for the devices of this process."""
    rows = []
    for shard in SHARDS if num_devices > 1 else SHARDS[:1]:
        config = dataclasses.replace(run_of(num_devices), shard=shard)
        stage = config.stages[0]
        program = lower_step(config, stage, make_mesh()).compile().as_text()
        found = collectives(program or "", num_devices)
        rows.append(
            {
                "devices": num_devices,
                "shard": shard,
                "batch": stage.batch_size,
                "embed": config.model.embed,
                "bytes": sum(kind["bytes"] for kind in found.values()),
                "collectives": found,
                "jax": jax.__version__,
                "python": platform.python_version(),
            }
        )
    return rows


def plot(rows: list[dict[str, Any]]) -> str:
    """Bytes against devices, both by powers of two, as SVG."""
    width, height, pad = 520, 300, 50
    top = max(row["bytes"] for row in rows)
    low = min(row["bytes"] for row in rows if row["bytes"])
    across = lambda devices: pad + math.log2(devices) / math.log2(COUNTS[-1]) * (width - 2 * pad)
    up = lambda size: height - pad - math.log2(size / low) / max(math.log2(top / low), 1) * (height - 2 * pad)
    drawn = f"<path d='M{pad} {pad}V{height - pad}H{width - pad}' fill='none' stroke='#d0d7de'/>"
    for place, (shard, color) in enumerate(zip(SHARDS, ("#0072b2", "#d55e00", "#009e73"), strict=True)):
        points = [(across(row["devices"]), up(row["bytes"])) for row in rows if row["shard"] == shard and row["bytes"]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn += f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{line}'/>"
        drawn += f"<text x='{pad + 10}' y='{pad + 16 * place}' fill='{color}'>shard={shard}</text>"
    for devices in COUNTS:
        drawn += f"<text x='{across(devices):.0f}' y='{height - pad + 16}' text-anchor='middle'>{devices}</text>"
    drawn += f"<text x='4' y='{pad - 8}'>{top / 1e6:.0f} MB</text><text x='4' y='{height - pad}'>{low / 1e6:.1f}</text>"
    drawn += f"<text x='{width - pad}' y='{height - 10}' text-anchor='end'>devices</text>"
    style = "<style>text{font:12px sans-serif;fill:#57606a}</style>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'>{style}{drawn}</svg>\n"


def main() -> None:
    """Measure each number of devices in a process of its own, since a process has one number."""
    if os.environ.get("CLIPA_SCALING_WORKER"):
        print(json.dumps(measure(jax.device_count())))
        return
    rows: list[dict[str, Any]] = []
    for count in [int(word) for word in sys.argv[1:]] or COUNTS:
        flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
        environment = {**os.environ, "CLIPA_SCALING_WORKER": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        answer = subprocess.run([sys.executable, __file__], env=environment, check=True, stdout=subprocess.PIPE)
        for row in json.loads(answer.stdout.splitlines()[-1]):
            rows.append(row)
            kinds = "  ".join(f"{kind} {v['count']} x {v['bytes']:,} B" for kind, v in row["collectives"].items())
            print(f"{row['devices']:4} devices  shard {row['shard']:10} batch {row['batch']:5}  {kinds}", flush=True)
    with (RESULTS / "scaling.json").open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    (RESULTS / "scaling.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
