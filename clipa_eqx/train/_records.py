"""JSON-lines files that grow with a run and can be rewound to a checkpoint."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Records:
    """An append-only `.jsonl` file whose rows carry `stage` and `step`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and flush them to the file."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def read(self) -> list[dict[str, Any]]:
        """Every whole row; a last line cut short by a kill is left out."""
        if not self._path.exists():
            return []
        rows = []
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                rows.append(json.loads(line))
        return rows

    def rewind(self, stages_done: Iterable[str], stage: str, step: int) -> None:
        """Drop what a run wrote after the checkpoint it continues from.

        Args:
            stages_done: stages whose rows all stay.
            stage: stage that continues; of its rows those up to `step` stay.
            step: step of the checkpoint, 0 to start the stage over.
        """
        done = set(stages_done)
        rows = [row for row in self.read() if row["stage"] in done or (row["stage"] == stage and row["step"] <= step)]
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        fresh.replace(self._path)
