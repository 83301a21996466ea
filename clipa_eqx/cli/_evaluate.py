"""`clipa evaluate`: a trained model on labelled or captioned pictures."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..config import EvalConfig, EvalResize, load_run_config
from ._compiled import CompilationCache, keep_compiled


@dataclass(frozen=True)
class Evaluate:
    """Measure a finished run's model and write the result, with the protocol it was measured by.

    What is not said here is done as the run itself measured: resize, kernel, how texts are cut.
    """

    run_dir: tyro.conf.Positional[Path]
    """Directory of a finished run."""
    classification: str = ""
    """Zero-shot set: a folder in CLIP_benchmark's webdataset form, or with one folder per class."""
    retrieval: str = ""
    """Retrieval set: a folder of webdataset tar shards with captions."""
    resize: EvalResize | None = None
    """crop: shortest side to the size, then the centre square. squash: both sides, aspect ignored."""
    ema: bool = False
    """Measure the averaged weights, of a run that kept them."""
    batch_size: int = 256
    """Images or texts embedded at once."""
    out: Path | None = None
    """File for the result. Default: evaluation.json in the run directory."""
    compilation_cache: CompilationCache = "auto"
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Load, measure, write."""
        if not (self.classification or self.retrieval):
            raise ValueError("Nothing to measure: give --classification PATH, --retrieval PATH, or both.")
        keep_compiled(self.compilation_cache)
        from ..evaluation import evaluate
        from ..interop import load_pretrained

        pretrained = load_pretrained(self.run_dir, ema=self.ema)
        results = evaluate(pretrained.model, pretrained.tokenizer, self._protocol())
        out = self.out or self.run_dir / "evaluation.json"
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        _print_table(results)
        return results

    def _protocol(self) -> EvalConfig:
        config = load_run_config(self.run_dir / "config.json").evaluation
        return dataclasses.replace(
            config,
            classification=self.classification,
            retrieval=self.retrieval,
            resize=self.resize or config.resize,
            batch_size=self.batch_size,
        )


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("set", "measure", "value")
    for name, scores in results.items():
        for measure, value in scores.items():
            if isinstance(value, float):
                table.add_row(name, measure, f"{100 * value:.2f} %")
    Console().print(table)
