"""Does a model trained in bfloat16 over float32 weights reach the accuracy of one trained in float32?

Trains the recipe of `clipa demo` on one world, from several seeds in either type, and appends a JSON line per run to
results/precision_accuracy.json; the last line compares the means with the spread over seeds. A quarter of an hour per
run on two cores; `--share` trains on less.

    python benchmarks/precision_accuracy.py [--seeds 0 1 2] [--share 0.5] [--directory runs/precision]
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

from _common import write_record

from clipa_eqx.cli._demo import Demo, make_data
from clipa_eqx.config import FloatType, RunConfig
from clipa_eqx.data import load_tokenizer
from clipa_eqx.evaluation import make_evaluators
from clipa_eqx.host_memory import keep_freed_memory


TYPES: tuple[FloatType, ...] = ("float32", "bfloat16")


def run_of(directory: Path, dtype: FloatType, seed: int, share: float) -> RunConfig:
    """The demo's run, measured at its end, with every stage shortened to a share of its samples."""
    config = Demo(directory).configure()
    stages = tuple(
        dataclasses.replace(
            stage, compute_dtype=dtype, samples=round(stage.samples * share / stage.batch_size) * stage.batch_size
        )
        for stage in config.stages
    )
    evaluation = dataclasses.replace(config.evaluation, every_steps=0)
    return dataclasses.replace(config, stages=stages, evaluation=evaluation, seed=seed)


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    keep_freed_memory()
    from clipa_eqx.train import train

    make_data(arguments.directory, 100_000, 0)
    top1: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
    for seed in arguments.seeds:
        for dtype in TYPES:
            config = run_of(arguments.directory, dtype, seed, arguments.share)
            evaluators = make_evaluators(config.evaluation, load_tokenizer(config.data.tokenizer))
            run_dir = arguments.directory / f"{dtype}-{seed}-{arguments.share}"
            result = train(config, run_dir, evaluators=evaluators, console=False).evaluation
            top1[dtype].append(100 * result["top1"])
            row = {"dtype": dtype, "seed": seed, "share": arguments.share, "top1": top1[dtype][-1]}
            write_record("precision_accuracy", row | {"top1_unseen": 100 * result["top1_unseen"]})
            print(row, flush=True)
    means = {dtype: round(statistics.mean(values), 2) for dtype, values in top1.items()}
    spread = {dtype: round(statistics.stdev(values), 2) for dtype, values in top1.items()}
    write_record("precision_accuracy", {"seeds": list(arguments.seeds), "mean_top1": means, "deviation": spread})
    print(f"mean top-1 {means}, deviation over seeds {spread}")


if __name__ == "__main__":
    main()
