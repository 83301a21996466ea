"""`clipa demo`: the whole job on the built-in world, from captioned JPEG shards to a measured model and a report."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from ..config import CheckpointConfig, DataConfig, RunConfig, StageConfig
from ..host_memory import keep_freed_memory
from ..recipes import get_recipe, image_tokens, run_config
from ._compiled import CompilationCache, keep_compiled


if TYPE_CHECKING:
    from ..models import CLIP
    from ._report import GalleryRow

# Compute that the run on full tokens may spend, as multiples of the reduced run's, until it is as good.
_BUDGETS = (1.5, 2.0, 3.0)

# Steps between evaluations and checkpoints.
_EVALUATE_EVERY = 200


@dataclass(frozen=True)
class Demo:
    """Make the built-in world, train `world-tiny` on it in two stages, measure it, write a report.

    Takes about five minutes on two CPU cores. Started again, it continues where it stopped.
    """

    directory: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    """Where the world, the run, result.json and report.html go."""
    pairs: int = 100_000
    """Training pairs to draw."""
    compare: bool = False
    """Also train the same model on full tokens only until it is as accurate, and report the compute saved."""
    seed: int = 0
    """Seed of the world and of the run."""
    compilation_cache: CompilationCache = "auto"
    json: bool = True
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Make, train, measure, report."""
        began = time.perf_counter()
        keep_freed_memory()
        keep_compiled(self.compilation_cache)
        make_data(self.directory, self.pairs, self.seed)
        config = self.configure()

        from ..train import train

        run_dir = self.directory / "run"
        trained = train(config, run_dir, evaluators=_evaluators(config))
        result = {
            "zero_shot_top1": trained.evaluation["top1"],
            "zero_shot_top1_unseen": trained.evaluation["top1_unseen"],
            "zero_shot_top5": trained.evaluation["top5"],
            "num_classes": len((self.directory / "world/classification/classnames.txt").read_text().splitlines()),
            "image_to_text_recall@1": trained.evaluation["image_to_text_recall@1"],
            "text_to_image_recall@1": trained.evaluation["text_to_image_recall@1"],
            "train_flops": _train_flops(config),
            "samples": sum(stage.samples for stage in config.stages),
        }
        if self.compare:
            result |= _compare(self.directory, config, result)
        result |= {"seconds": round(time.perf_counter() - began, 1), "run_dir": str(run_dir)}
        (self.directory / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        _write_report(self.directory, config, trained.model, result)
        _print_table(result)
        return result

    def configure(self) -> RunConfig:
        """The run of the recipe `world-tiny` on this directory's world."""
        world = self.directory / "world"
        config = run_config(
            get_recipe("world-tiny"),
            data=DataConfig(train=str(world / "train"), tokenizer=str(self.directory / "tokenizer"), caption_tokens=24),
            seed=self.seed,
        )
        evaluation = dataclasses.replace(
            config.evaluation,
            classification=str(world / "classification"),
            retrieval=str(world / "retrieval"),
            every_steps=_EVALUATE_EVERY,
        )
        return dataclasses.replace(
            config, evaluation=evaluation, checkpoint=CheckpointConfig(every_steps=_EVALUATE_EVERY)
        )


def make_data(directory: Path, pairs: int, seed: int) -> None:
    """The world and its vocabulary, unless an earlier start of the same demo made them."""
    from ..data import make_world, open_pairs, train_tokenizer

    world, vocabulary = directory / "world", directory / "tokenizer"
    summary = world / "world.json"
    if summary.is_file():
        made = json.loads(summary.read_text(encoding="utf-8"))
        if (made["pairs"], made["seed"]) != (pairs, seed):
            raise ValueError(
                f"{world} holds a world of {made['pairs']} pairs from seed {made['seed']}, not of {pairs} from {seed}; "
                "choose another directory or the same numbers."
            )
    else:
        make_world(world, pairs=pairs, seed=seed, processes=os.cpu_count() or 1)
    if not vocabulary.is_dir():
        source = open_pairs(DataConfig(train=str(world / "train")))
        captions = (source.captions(index)[0] for index in range(min(len(source), 20_000)))
        vocab_size = get_recipe("world-tiny").model.text.vocab_size
        train_tokenizer(captions, vocab_size=vocab_size).save(vocabulary)


def _evaluators(config: RunConfig) -> tuple[Callable[["CLIP"], dict[str, float]], ...]:
    from ..data import load_tokenizer
    from ..evaluation import make_evaluators

    return make_evaluators(config.evaluation, load_tokenizer(config.data.tokenizer))


def _train_flops(config: RunConfig) -> float:
    """Floating-point operations of all steps of a run."""
    from ..train import step_flops

    return sum(stage.steps * step_flops(config, stage) for stage in config.stages)


class _AsGood(Exception):
    """The run on full tokens has reached the accuracy it was to reach."""


def _compare(directory: Path, config: RunConfig, reduced: dict[str, Any]) -> dict[str, Any]:
    """Train on full tokens only, with growing budgets, until one run is as accurate; how much compute that took.

    Each budget is a run of its own with a whole schedule, so that the full run is not judged half-way through its
    learning-rate decay. It stops as soon as it is as accurate.
    """
    from ..train import Records, step_flops, train

    tried: dict[str, Any] = {}
    for budget in _BUDGETS:
        full = _full_tokens(config, budget, reduced["train_flops"])
        (stage,) = full.stages
        run_dir = directory / stage.name
        flops_per_step = step_flops(full, stage)
        try:
            best = train(full, run_dir, evaluators=(_until(reduced["zero_shot_top1"], full),)).evaluation["top1"]
        except _AsGood:
            steps = Records(run_dir / "metrics.jsonl").read()[-1]["step"]
            spent = steps * flops_per_step
            return {"compute_saving": spent / reduced["train_flops"], "full_tokens_flops": spent, "reached": True}
        spent = stage.steps * flops_per_step
        tried = {"compute_saving": spent / reduced["train_flops"], "full_tokens_flops": spent, "full_tokens_top1": best}
    # No budget sufficed: the saving is at least the largest one tried.
    return tried | {"reached": False}


def _until(top1: float, config: RunConfig) -> "Callable[[CLIP], dict[str, float]]":
    """An evaluator that ends training once zero-shot accuracy is `top1`."""
    (evaluate,) = _evaluators(config)

    def measure(model: "CLIP") -> dict[str, float]:
        scores = evaluate(model)
        if scores["top1"] >= top1:
            raise _AsGood
        return scores

    return measure


def _full_tokens(config: RunConfig, budget: float, reduced_flops: float) -> RunConfig:
    """One stage on all tokens at the first stage's rate, for `budget` times the compute of the reduced run."""
    from ..train import step_flops

    few, full = config.stages[0], config.stages[-1]
    stage = dataclasses.replace(
        few,
        name=f"full-{budget:g}x",
        image_size=full.image_size,
        image_reduction="none",
        keep_patches=0,
        text_length=full.text_length,
        text_reduction=full.text_reduction,
        augment=full.augment,
    )
    steps = round(budget * reduced_flops / step_flops(config, stage))
    stage = dataclasses.replace(stage, samples=steps * stage.batch_size)
    evaluation = dataclasses.replace(config.evaluation, retrieval="", every_steps=max(steps // 25, 1))
    return dataclasses.replace(config, stages=(stage,), evaluation=evaluation, recipe="custom")


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title="clipa demo")
    for name, text in _readable(result).items():
        table.add_row(name, text)
    Console().print(table)


def _readable(result: dict[str, Any]) -> dict[str, str]:
    """The result for people."""
    rows = {
        f"zero-shot top-1 over {result['num_classes']} classes": f"{100 * result['zero_shot_top1']:.1f} %",
        "zero-shot top-1 on combinations never seen in training": f"{100 * result['zero_shot_top1_unseen']:.1f} %",
        "image to text recall@1": f"{100 * result['image_to_text_recall@1']:.1f} %",
        "text to image recall@1": f"{100 * result['text_to_image_recall@1']:.1f} %",
        "samples": f"{result['samples']:,}",
        "compute": f"{result['train_flops']:.2e} FLOPs",
        "time": f"{result['seconds']:.0f} s",
    }
    if "compute_saving" in result:
        at_least = "" if result["reached"] else "at least "
        rows["compute that full tokens need for the same accuracy"] = f"{at_least}{result['compute_saving']:.2f} x"
    return rows


def _write_report(directory: Path, config: RunConfig, model: "CLIP", result: dict[str, Any]) -> None:
    from ..train import Records, step_flops
    from ._report import Curve, render_report

    records = Records(directory / "run" / "metrics.jsonl").read()
    losses, accuracies, before = [], [], 0
    for stage in config.stages:
        rows = [row for row in records if row["stage"] == stage.name]
        points = [(before + row["samples"], row["loss"]) for row in rows if "loss" in row]
        losses.append(Curve(stage.name, points[:: max(len(points) // 200, 1)]))
        scores = [(before + row["step"] * stage.batch_size, row) for row in rows if "top1" in row]
        accuracies += scores
        before += stage.samples
    charts = {
        "Loss": losses,
        "Zero-shot top-1": [
            Curve("all classes", [(x, row["top1"]) for x, row in accuracies]),
            Curve("never seen in training", [(x, row["top1_unseen"]) for x, row in accuracies]),
        ],
    }
    stages = [_stage_row(config, stage, step_flops(config, stage)) for stage in config.stages]
    gallery = _gallery(directory, config, model)
    page = render_report("clipa demo", _readable(result), stages, charts, gallery)
    (directory / "report.html").write_text(page, encoding="utf-8")


def _stage_row(config: RunConfig, stage: StageConfig, flops_per_step: float) -> dict[str, str]:
    return {
        "stage": stage.name,
        "image": f"{stage.image_size} px",
        "image tokens": str(image_tokens(config.model, stage)),
        "text tokens": str(stage.text_length),
        "batch": str(stage.batch_size),
        "samples": f"{stage.samples:,}",
        "FLOPs per sample": f"{flops_per_step / stage.batch_size:.2e}",
        "FLOPs": f"{flops_per_step * stage.steps:.2e}",
    }


def _gallery(directory: Path, config: RunConfig, model: "CLIP", queries: int = 8, depth: int = 6) -> "list[GalleryRow]":
    """For every few classes the pictures nearest to its name, half of the classes never seen in training."""
    import numpy as np

    from ..data import load_tokenizer, open_classification
    from ..evaluation import embed_images, embed_texts, make_protocol
    from ._report import GalleryRow

    images = open_classification(config.evaluation.classification)
    unseen = (directory / "world/classification/unseen.txt").read_text().split()
    seen = [label for label in range(len(images.class_names)) if str(label) not in unseen]
    half = queries // 2
    labels = [*seen[:: len(seen) // half][:half], *map(int, unseen[:: len(unseen) // half][:half])]
    protocol = make_protocol(config.evaluation, model)
    pictures = embed_images(model, images, protocol).embeds
    texts = [f"a {images.class_names[label]}" for label in labels]
    nearest = np.argsort(-embed_texts(model, texts, load_tokenizer(config.data.tokenizer), protocol) @ pictures.T)
    return [
        GalleryRow(
            query=text + (" (never seen)" if str(label) in unseen else ""),
            pictures=[images.read(int(index)) for index in row[:depth]],
            right=[images.label(int(index)) == label for index in row[:depth]],
        )
        for text, label, row in zip(texts, labels, nearest, strict=True)
    ]
