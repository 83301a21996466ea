"""Draws a short table of `results.jsonl`, with estimates of the compiler beside what was measured where they are given.

    python benchmarks/gpu/rows.py results.jsonl [--estimates estimates.json]

The estimates are an object of milliseconds by name of the part.
"""

import argparse
import json
from pathlib import Path
from typing import Any


Record = dict[str, Any]
_COLUMNS = ("part", "ms (least, most)", "queued", "pairs/s", "% of peak", "estimate", "GiB plan / device", "compile s")


def table(records: list[Record], estimates: dict[str, float] | None = None) -> str:
    """One row for each step, one line for everything else; parts that failed with the first line of the reason."""
    by_name = {record["part"]: record for record in records}
    checked = by_name.get("check", {})
    lines = [f"{checked.get('device', 'no device')}, {json.dumps(checked.get('versions', {}))}"]
    ceilings = by_name.get("ceilings", {})
    peak = ceilings.get("square_tflops")
    rows = [_row(record, peak, estimates or {}) for record in records if "ms" in record]
    if rows:
        widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
        for row in (_COLUMNS, *rows):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for record in records:
        if "error" in record:
            reason = record.get("stderr", "").rpartition("\n")[2][:200]
            lines.append(f"{record['part']}: FAILED: {record['error']} {reason}".rstrip())
        elif "ms" not in record and record["part"] != "check":
            skipped = ("part", "options", "card", "device")
            figures = {name: value for name, value in record.items() if name not in skipped}
            lines.append(f"{record['part']}: {json.dumps(figures)}")
    return "\n".join(lines)


def _row(record: Record, peak: float | None, estimates: dict[str, float]) -> tuple[str, ...]:
    share = ""
    if peak and "model_flops" in record:
        share = f"{100 * record['model_flops'] / (record['ms'] * 1e9 * peak):.1f}"
    estimate = estimates.get(record["part"])
    plan, device = (record.get(name) for name in ("plan_gib", "device_peak_gib"))
    return (
        record["part"],
        f"{record['ms']:.1f} ({record['ms_least']:.1f}, {record['ms_most']:.1f})",
        f"{record['ms_queued']:.1f}",
        f"{1e3 * record['pairs'] / record['ms']:.0f}",
        share,
        "" if estimate is None else f"{estimate:.1f}",
        f"{plan if plan is not None else '-'} / {device if device is not None else '-'}",
        str(record.get("compile_s", "")),
    )


def main() -> None:
    """Read, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--estimates", type=Path)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    print(table(records, json.loads(arguments.estimates.read_text()) if arguments.estimates else None))


if __name__ == "__main__":
    main()
