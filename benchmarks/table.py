"""Draws the table of the README from `results/`.

Each row takes the newest record of its question; a question without a record has no row.

    python benchmarks/table.py            # rewrite the table
    python benchmarks/table.py --check    # exit with 1 if README.md shows another one
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- drawn by benchmarks/table.py -->", "<!-- end of the table -->"

Record = dict[str, Any]


class Row(NamedTuple):
    """A question, the script that answers it, and the figure as its records give it."""

    question: str
    script: str
    figure: Callable[[list[Record]], str]


def newest(records: list[Record], **wanted: Any) -> Record:
    """The last record that holds all these values."""
    return next(record for record in reversed(records) if wanted.items() <= record.items())


def loader(records: list[Record]) -> str:
    """Images/s over the peer's."""
    times = newest(records, size=112)["times_open_clip"]
    return f"{times['fast']['median']:.1f} times with `[fast]`, {times['pillow']['median']:.1f} times with Pillow"


def step(peer: str, memory: str) -> Callable[[list[Record]], str]:
    """Samples/s over a peer's, for the sizes of the CPU set."""

    def figure(records: list[Record]) -> str:
        cases = (("s16", 32), ("s16", 128), ("b16", 16))
        with_peer = [record for record in records if peer in record.get("times_as_fast", {})]
        found = [newest(with_peer, case=case, batch=batch, keep_memory=memory) for case, batch in cases]
        return " / ".join(f"{record['times_as_fast'][peer]['wall']:.2f}" for record in found) + " times"

    return figure


def loss(records: list[Record]) -> str:
    """Memory and time of the tiled loss."""
    memory = {"question": "memory", "loss": "softmax", "batch": 65536}
    tiled, whole = (newest(records, **memory, tile=tile)["temporary_gib"] for tile in (1024, None))
    slower = newest(records, question="time", loss="softmax")["tiled_over_whole_wall"]
    return f"{tiled:.2f} GiB in tiles, {whole:.0f} GiB whole, for {slower:.2f} times the time"


def inference(records: list[Record]) -> str:
    """Embeddings/s over the peer's, image and text."""
    found = [newest(records, case="s16", side=side) for side in ("image", "text")]
    return " / ".join(f"{record['times_as_fast']['open_clip']['wall']:.2f}" for record in found) + " times"


def starts(records: list[Record]) -> str:
    """Compile times."""
    first, kept, huge = (newest(records, case=case) for case in ("b16", "b16 kept", "h14"))
    return f"B/16 {first['start_s']:.0f} s, again {kept['start_s']:.0f} s; H/14 {huge['start_s']:.0f} s"


ROWS = (
    Row(
        "images/s beside open_clip's webdataset pipeline, 512 px JPEGs to 112 px, tokens included",
        "loader_rate.py",
        loader,
    ),
    Row(
        "training samples/s beside CLIPA's Flax modules: S/16 at 64 px, batch 32 / 128; B/16 at 112 px, batch 16",
        "train_step.py",
        step("flax", "ours"),
    ),
    Row("the same, were the Flax process to keep its freed memory too", "train_step.py", step("flax", "all")),
    Row("training samples/s beside open_clip, same sizes", "train_step.py", step("open_clip", "ours")),
    Row("images / texts embedded per second beside open_clip, S/16 at 64 px", "inference.py", inference),
    Row(
        "temporaries of the softmax loss and its gradient, batch 65,536, width 1024",
        "loss_memory.py",
        loss,
    ),
    Row(
        "share of an S/16 step that the costliest token reduction takes, batch 256",
        "reduction_ops.py",
        lambda records: f"{100 * records[-1]['worst_share']:.2f} %",
    ),
    Row("from the start of a process to the compiled step", "compile_time.py", starts),
    Row(
        "memory to load L/14 from safetensors, per byte of its weights",
        "weights_full_size.py",
        lambda records: f"{records[-1]['memory']['own']['peak_ratio']:.2f}",
    ),
)


def draw() -> str:
    """The table, as it stands between the two marks."""
    lines = ["| question | figure | script |", "|---|---|---|"]
    for row in ROWS:
        results = ROOT / "benchmarks" / "results" / f"{row.script.removesuffix('.py')}.json"
        if results.is_file():
            records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line]
            lines.append(f"| {row.question} | {row.figure(records)} | `{row.script}` |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    drawn = f"{before}{BEGIN}\n{draw()}\n{END}{after}"
    if not arguments.check:
        readme.write_text(drawn, encoding="utf-8")
    elif drawn != text:
        sys.exit("README.md shows another table than benchmarks/results/: run python benchmarks/table.py.")


if __name__ == "__main__":
    main()
