"""`clipa train`: a recipe, or a config file, on the user's data."""

import dataclasses
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import check_run, CheckpointConfig, DataConfig, load_run_config, override, RunConfig
from ..host_memory import keep_freed_memory
from ..recipes import get_recipe, image_tokens, recipes, run_config, scale_recipe
from ._compiled import CompilationCache, keep_compiled
from ._processes import Processes


_TABLE_WIDTH = 140


@dataclass(frozen=True)
class Train:
    """Train a CLIP, stage after stage.

    The same command on the same run directory resumes bit for bit. SIGTERM saves a checkpoint and exits with 143.
    """

    recipe: Annotated[str, tyro.conf.Positional] = ""
    """Name of a recipe; --list shows them."""
    list: bool = False
    """Show every recipe with its tokens, batch, samples and parameters, and stop."""
    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, weights. Default: runs/RECIPE."""
    config: Path | None = None
    """A config.json instead of a recipe, as a run writes it; --data and --seed then come from the file."""
    scale: str = "1"
    """Shrink the recipe, as 1/256: batch, learning rate, warmup and samples by the recipe's own rules."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training pairs and vocabulary."""
    classification: str = ""
    """Zero-shot classification set to measure on; see `clipa evaluate --help`."""
    retrieval: str = ""
    """Retrieval set to measure on."""
    evaluate_every_steps: int = 0
    """Measure each so many steps; 0: at the end of each stage."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and which are kept."""
    seed: int = 0
    """The one seed of the run."""
    compilation_cache: CompilationCache = "auto"
    profile_steps: str = ""
    """Write a trace of these steps by JAX's profiler into profile/ of the run directory, as FIRST:STOP: 10:13 traces
    the steps 10, 11 and 12. They count from 1 over all stages, as in the event files; a resumed run may name others."""
    processes: Processes = field(default_factory=Processes)
    """Several processes that train one run."""
    set: tuple[str, ...] = ()
    """Change single fields: --set stages.0.batch_size=64 model.vision.pool=first (a stage by place or name)."""
    dry_run: bool = False
    """Check the whole run, write nothing, stop."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Train, or list, or check."""
        if self.list:
            return _list_recipes()
        keep_freed_memory()
        config, profile_steps = self.resolve(), _steps(self.profile_steps)
        keep_compiled(self.compilation_cache)
        self.processes.join()
        import jax

        from ..data import load_tokenizer
        from ..evaluation import make_evaluators
        from ..train import check_layout, check_profile, together, train

        def check() -> None:
            check_run(config, num_devices=jax.device_count(), num_processes=jax.process_count())
            check_layout(config, jax.device_count())
            check_profile(config, profile_steps)

        together(check)
        if self.dry_run:
            return {"recipe": config.recipe, "stages": [stage.name for stage in config.stages], "checked": True}
        run_dir = self.run_dir or Path("runs") / config.recipe
        evaluators = together(lambda: make_evaluators(config.evaluation, load_tokenizer(config.data.tokenizer)))
        result = train(config, run_dir, evaluators=evaluators, profile_steps=profile_steps)
        return {"run_dir": str(run_dir), "seconds": result.seconds, **result.evaluation}

    def resolve(self) -> RunConfig:
        """The run that the arguments describe.

        Raises:
            ValueError: neither or both of a recipe and a config file, or no data.
        """
        if bool(self.recipe) == (self.config is not None):
            raise ValueError(
                "Give the name of a recipe (clipa train --list shows them) or --config FILE, one of the two."
            )
        if self.config is not None:
            return override(load_run_config(self.config), self.set)
        recipe = scale_recipe(get_recipe(self.recipe), _fraction(self.scale))
        config = run_config(recipe, data=self.data, seed=self.seed)
        evaluation = dataclasses.replace(
            config.evaluation,
            classification=self.classification,
            retrieval=self.retrieval,
            every_steps=self.evaluate_every_steps,
            word_class=self.data.word_class,
        )
        config = dataclasses.replace(config, evaluation=evaluation, checkpoint=self.checkpoint)
        return override(config, self.set)


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--scale takes a fraction as 1/256 or 0.5, got {text!r}.") from error


def _steps(text: str) -> range | None:
    if not text:
        return None
    first, colon, stop = text.partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal()):
        raise ValueError(
            f"--profile-steps takes FIRST:STOP, as 10:13 for the steps 10, 11 and 12 of the run, got {text!r}."
        )
    return range(int(first), int(stop))


def _list_recipes() -> dict[str, Any]:
    """Print a row per stage of every recipe; returns them as plain data."""
    import equinox as eqx
    import jax
    from rich.console import Console
    from rich.table import Table

    from ..models import count_parameters, make_clip

    table = Table(box=None)
    for column in ("recipe", "stage", "px", "image tokens", "text tokens", "batch", "samples", "lr", "parameters"):
        table.add_column(column, no_wrap=True)
    rows: list[dict[str, Any]] = []
    for recipe in recipes.values():
        shapes = eqx.filter_eval_shape(make_clip, recipe.model, key=jax.random.key(0))
        parameters = count_parameters(shapes)
        for place, stage in enumerate(recipe.stages):
            row = {
                "recipe": recipe.name,
                "stage": stage.name,
                "image_size": stage.image_size,
                "image_tokens": image_tokens(recipe.model, stage),
                "text_tokens": stage.text_length,
                "batch_size": stage.batch_size,
                "samples": stage.samples,
                "learning_rate": stage.optim.learning_rate,
                "parameters": parameters,
            }
            rows.append(row)
            table.add_row(
                "" if place else recipe.name,
                stage.name,
                str(stage.image_size),
                f"{row['image_tokens']}",
                f"{stage.text_length} {stage.text_reduction}",
                f"{stage.batch_size}",
                f"{stage.samples:.3g}",
                f"{stage.optim.learning_rate:.3g}",
                "" if place else f"{parameters / 1e6:.1f} M",
            )
    # A table cut to a narrow terminal hides names; lines that wrap do not.
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)
    return {"recipes": rows}
