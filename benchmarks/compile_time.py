"""How long does a training step take to trace and compile, and how long a second start?

The first stage of each published recipe at its published batch, from shapes alone, each in a process of its own; on
two CPU cores the aims are: B/16 below 20 s, H/14 below 60 s, tracing bigG/14 below 60 s, and with the compiled step
kept from an earlier start, B/16 below 10 s from the start of the process.

- import_s: from the start of the process until the library is loaded.
- trace_s: to the program that goes to the compiler. compile_s: the compiler.
- start_s: all of it.

    python benchmarks/compile_time.py [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from _common import write_record


class Case:
    """A recipe's first stage; whether it is compiled, and whether an earlier start left the compiled step."""

    def __init__(self, recipe: str, *, compiles: bool = True, kept: bool = False) -> None:
        self.recipe, self.compiles, self.kept = recipe, compiles, kept


CASES = {
    "b16": Case("clipa-b16-112"),
    "b16 kept": Case("clipa-b16-112", kept=True),
    "h14": Case("clipa-v2-h14-84"),
    "bigg14": Case("clipa-v2-bigg14-84", compiles=False),
}


def measure(recipe: str, began: float, *, compiles: bool) -> dict[str, float]:
    """The times of this process, which `began` at a wall-clock time."""
    from clipa_eqx.config import DataConfig
    from clipa_eqx.recipes import get_recipe, run_config
    from clipa_eqx.sharding import make_mesh
    from clipa_eqx.train import lower_step

    mesh = make_mesh()
    times = [began, time.time()]
    config = run_config(get_recipe(recipe), data=DataConfig(train="-"))
    lowered = lower_step(config, config.stages[0], mesh)
    times.append(time.time())
    named = {"import_s": times[1] - times[0], "trace_s": times[2] - times[1]}
    if compiles:
        lowered.compile()
        named["compile_s"] = time.time() - times[2]
    return named | {"start_s": time.time() - began}


def start(case: Case, folder: str) -> dict[str, float]:
    """One process that measures itself, with its compiled programs in `folder`."""
    command = [sys.executable, __file__, "--worker", case.recipe, "--began", str(time.time())]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        command + ["--trace_only"] * (not case.compiles), env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    """Measure every case, or be one process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--trace_only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.began, compiles=not arguments.trace_only)))
        return
    for name in arguments.cases:
        case = CASES[name]
        rounds: list[dict[str, float]] = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                if case.kept:
                    start(case, folder)
                rounds.append(start(case, folder))
        row: dict[str, Any] = {"case": name, "recipe": case.recipe, "rounds": arguments.rounds}
        for figure in rounds[0]:
            values = [times[figure] for times in rounds]
            row[figure] = round(statistics.median(values), 2)
            row[f"{figure}_most"] = round(max(values), 2)
        write_record("compile_time", row)
        print("  ".join(f"{label} {value}" for label, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
