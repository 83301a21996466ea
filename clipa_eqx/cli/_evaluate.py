"""`clipa evaluate`: a trained model on labelled or captioned pictures."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import EvalConfig


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's model and write the result, with the protocol it was measured by."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a finished run."""
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name="")] = field(default_factory=EvalConfig)
    """What to measure and how."""
    out: Path | None = None
    """File for the result. Default: evaluation.json in the run directory."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Load, measure, write."""
        config = self.evaluation
        if not (config.classification or config.retrieval):
            raise ValueError("Nothing to measure: give --classification PATH, --retrieval PATH, or both.")
        from ..evaluation import evaluate
        from ..interop import load_pretrained

        pretrained = load_pretrained(self.run_dir)
        results = evaluate(pretrained.model, pretrained.tokenizer, config)
        out = self.out or self.run_dir / "evaluation.json"
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        return results
