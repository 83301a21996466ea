"""`clipa train`: a recipe, or a config file, on the user's data."""

import dataclasses
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from ..config import check_run, CheckpointConfig, DataConfig, EvalConfig, load_run_config, override, RunConfig
from ..host_memory import keep_freed_memory
from ..recipes import get_recipe, image_tokens, Recipe, recipes, run_config, scale_recipe, tune_recipes
from ._compiled import CompilationCache, keep_compiled
from ._processes import Processes


if TYPE_CHECKING:
    from ..init_from import ImageTower
    from ..interop import Pretrained


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
    init_from: str = ""
    """Weights to start from: a run directory, one of its checkpoints, a directory or file of open_clip, Hugging Face,
    OpenAI, CLIPA-JAX or big_vision, a timm or MAE image tower, or hf-hub:org/name. Without a recipe: fine-tune."""
    epochs: float | None = None
    """Passes over the data, of the recipes that start from weights: fine-tune, lit, unmask. Default: the recipe's."""
    config: Path | None = None
    """A config.json instead of a recipe, as a run writes it; --data and --seed then come from the file."""
    from_stage: str = ""
    """Leave out the stages before this one, as to go on from a checkpoint of it."""
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
        profile_steps = _steps(self.profile_steps)
        keep_compiled(self.compilation_cache)
        self.processes.join()
        import jax

        from ..data import load_tokenizer
        from ..evaluation import make_evaluators
        from ..init_from import starting_model
        from ..interop import Pretrained
        from ..models import CLIP
        from ..train import check_layout, check_profile, RunDirectory, together, train

        # Handed over, lest the run holds the weights that it starts from for as long as it lasts.
        handed = [together(self._open_start)]
        config = together(lambda: self.resolve(handed[0]))
        run_dir = self.run_dir or Path("runs") / config.recipe

        def check() -> None:
            check_run(
                config,
                num_devices=jax.device_count(),
                num_processes=jax.process_count(),
                starts_from_weights=bool(config.init_from),
            )
            check_layout(config, jax.device_count())
            check_profile(config, profile_steps)

        together(check)
        if self.dry_run:
            return {"recipe": config.recipe, "stages": [stage.name for stage in config.stages], "checked": True}
        # The vocabulary that came with the weights lies in the run's directory from the start on.
        own = RunDirectory(run_dir).tokenizer
        came = None
        if isinstance(handed[0], Pretrained) and not config.data.tokenizer:
            came = load_tokenizer(own) if own.is_dir() else handed[0].found_tokenizer
            if came is None:
                raise ValueError(
                    f"{config.init_from} came without a vocabulary that is read here: give --data.tokenizer."
                )

        def first_model() -> CLIP:
            opened = handed.pop()
            return opened.model if isinstance(opened, Pretrained) else starting_model(config)

        evaluators = together(lambda: make_evaluators(config.evaluation, came or load_tokenizer(config.data.tokenizer)))
        result = train(
            config,
            run_dir,
            model=first_model if config.init_from else None,
            tokenizer=came,
            evaluators=evaluators,
            profile_steps=profile_steps,
        )
        return {"run_dir": str(run_dir), "seconds": result.seconds, **result.evaluation}

    def _open_start(self) -> "Pretrained | ImageTower | None":
        """What `--init-from`, or the config, names; None: nothing."""
        from ..init_from import ImageTower, open_start

        name = self.init_from
        if self.config is not None:
            name = name or load_run_config(self.config).init_from
        if not name:
            return None
        start = open_start(name)
        if isinstance(start, ImageTower):
            sys.stderr.write(f"Starts from the image tower in {name}; the text side is drawn\n")
        else:
            tokenizer = "with its vocabulary" if start.found_tokenizer else "without a vocabulary"
            vision = start.config.vision
            sys.stderr.write(
                f"Starts from {name}, {tokenizer}: {vision.image_size} px, patches of {vision.patch_size} px, "
                f"{start.config.text.context_length} text tokens, {start.preprocess.resize} and "
                f"{start.preprocess.interpolation} resize\n"
            )
        return start

    def resolve(self, start: "Pretrained | ImageTower | None" = None) -> RunConfig:
        """The run that the arguments describe.

        Args:
            start: what `--init-from` names, opened.

        Raises:
            ValueError: neither or both of a recipe and a config file, no data, or a config that lies beside weights.
        """
        if (self.recipe and self.config) or not (self.recipe or self.config or self.init_from):
            raise ValueError(
                "Give the name of a recipe (clipa train --list shows them) or --config FILE, one of the two, or "
                "--init-from WEIGHTS to fine-tune."
            )
        if self.config is not None:
            config = self._with_stages(override(self._load_config(self.config), self.set))
            if self.init_from:
                # Other weights than those that the config came from, with a digest of their own.
                config = dataclasses.replace(config, init_from=self.init_from, init_digest="")
            return config
        recipe = self._recipe(start)
        data = self.data
        if start is not None:
            # A model's own texts are as long as its context, often longer than what is read of a caption by default.
            longest = max(stage.text_length for stage in recipe.stages)
            data = dataclasses.replace(data, caption_tokens=max(data.caption_tokens, longest))
        config = run_config(recipe, data=data, seed=self.seed)
        config = self._with_stages(dataclasses.replace(config, init_from=self.init_from))
        evaluation = dataclasses.replace(
            config.evaluation,
            classification=self.classification,
            retrieval=self.retrieval,
            every_steps=self.evaluate_every_steps,
            word_class=self.data.word_class,
        )
        config = dataclasses.replace(config, evaluation=evaluation, checkpoint=self.checkpoint)
        return override(config, self.set)

    def _load_config(self, path: Path) -> RunConfig:
        """The config of a file, unless it is one of foreign or imported weights, which do not come with it."""
        weights = path.parent
        advice = f"{path} lies beside weights and would not start from them; use --init-from {weights}"
        foreign = any(weights.glob("open_clip_*")) or any(weights.glob("pytorch_model*"))
        try:
            config = load_run_config(path)
        except ValueError as error:
            if foreign or any(weights.glob("*.safetensors")):
                raise ValueError(f"{advice}. As the config of a run it cannot be read: {error}") from error
            raise
        if config.recipe == "imported" and not self.init_from:
            raise ValueError(f"{advice}.")
        if (weights / "model.safetensors").is_file() and not config.init_from and not self.init_from:
            run_dir = self.run_dir or Path("runs") / config.recipe
            if run_dir.resolve() != weights.resolve():
                sys.stderr.write(f"{advice}. This run draws its weights anew.\n")
        return config

    def _with_stages(self, config: RunConfig) -> RunConfig:
        if not self.from_stage:
            return config
        names = [stage.name for stage in config.stages]
        if self.from_stage not in names:
            raise ValueError(f"--from-stage {self.from_stage!r}: the run has the stages {', '.join(names)}.")
        return dataclasses.replace(config, stages=config.stages[names.index(self.from_stage) :])

    def _recipe(self, start: "Pretrained | ImageTower | None") -> Recipe:
        """The recipe that is named, with the model of the weights where it starts from some."""
        from ..data import load_tokenizer, open_pairs
        from ..init_from import check_same_model, tower_model
        from ..interop import Pretrained

        name = self.recipe or "fine-tune"
        whole = start if isinstance(start, Pretrained) else None
        if name in tune_recipes and start is not None:
            if whole is None and name != "lit":
                raise ValueError(
                    f"{self.init_from} holds an image tower alone, whose text side is drawn: {name} is for whole "
                    "models. Use lit, or a recipe whose model has this image tower and says the text side."
                )
            if self.scale != "1":
                raise ValueError(f"{name} is sized by the data: use --epochs instead of --scale.")
            if isinstance(start, Pretrained):
                model, came = start.config, start.preprocess
            else:
                model, came = tower_model(start, load_tokenizer(self.data.tokenizer)), None
            return tune_recipes[name].recipe(
                model,
                pairs=len(open_pairs(self.data)),
                epochs=self.epochs,
                evaluation=EvalConfig(resize=came.resize, interpolation=came.interpolation) if came else None,
            )
        if self.epochs is not None:
            raise ValueError(f"--epochs is for {', '.join(tune_recipes)}; {name} states its samples.")
        recipe = scale_recipe(get_recipe(name), _fraction(self.scale))
        if whole is None:
            return recipe
        check_same_model(whole.config, recipe.model)
        sizes = {"image_size": recipe.model.vision.image_size, "position": recipe.model.vision.position}
        model = dataclasses.replace(
            whole.config,
            vision=dataclasses.replace(whole.config.vision, **sizes),
            text=dataclasses.replace(whole.config.text, context_length=recipe.model.text.context_length),
        )
        # Pictures come to the model as they came to it before.
        kernel = whole.preprocess.interpolation
        stages = tuple(
            dataclasses.replace(stage, augment=dataclasses.replace(stage.augment, interpolation=kernel))
            for stage in recipe.stages
        )
        evaluation = dataclasses.replace(recipe.evaluation, resize=whole.preprocess.resize, interpolation=kernel)
        return dataclasses.replace(recipe, model=model, stages=stages, evaluation=evaluation)


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
