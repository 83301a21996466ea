"""The training run, in the order in which it happens."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, NamedTuple, SupportsFloat

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh

from .._types import Key
from ..config import config_to_json, RunConfig, stage_model, StageConfig
from ..data import BatchIterator, open_texts, PairSource, Tokenizer, training_batches
from ..models import CLIP, make_clip, save_weights
from ..sharding import make_mesh, texts_of_all, whole_on_one_device
from ..termination import conclude, hold, interruptible, meet, shielded, Terminated, watching
from ._checkpoint import Checkpoints
from ._compile import compile_step
from ._hot_path import HotPath
from ._metrics import evaluated, last_evaluation, StageLog
from ._optim import GivenOptimizer
from ._parts import KeepImage, KeepText, Loss, Parts
from ._profile import Profile
from ._run_dir import RunDirectory
from ._stage import abstract_batch, first_state, StageStart, start_stage
from ._start import fingerprints, Given, GivenModel, open_run
from ._state import run_keys, TrainState
from ._together import check_same, check_shared, check_versions, together


Evaluator = Callable[[CLIP], Mapping[str, SupportsFloat]]
"""Measures a model by any scalars, JAX's too, all processes together. It sees image size and text length in
`model.config`."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run hands back."""

    model: CLIP
    average: CLIP | None
    """The averaged weights; None unless the last stage has `ema_decay`."""
    evaluation: dict[str, float]
    """Results of the last evaluation; empty without evaluators."""
    seconds: float
    """Wall time of this call; a resumed run counts from its resumption."""


def train(
    config: RunConfig,
    run_dir: Path | str,
    *,
    model: GivenModel | None = None,
    pairs: PairSource | None = None,
    tokenizer: Tokenizer | None = None,
    keep_image: KeepImage | None = None,
    keep_text: KeepText | None = None,
    loss: Loss | None = None,
    optimizer: GivenOptimizer | None = None,
    evaluators: Sequence[Evaluator] = (),
    profile_steps: range | None = None,
    console: bool = True,
) -> RunResult:
    """Train every stage of a run, or continue it from where its directory says it was.

    Starting the same config in the same directory again resumes: weights, optimiser, order of the data and randomness
    go on bit for bit; on other devices or processes, or in another layout, up to rounding. Each later stage starts from
    the weights of the one before, with positions moved to its sizes by [`transfer`][clipa_eqx.models.transfer] and a
    fresh optimiser, as CLIPA tunes.

    What the config names can be given as a value instead. The run's record then names it, and the run is not resumed
    without it.

    Args:
        config: the run.
        run_dir: where `config.json`, `metrics.jsonl`, checkpoints and, at the end, `model.safetensors` go. With several
            processes, a folder that all of them see.
        model: the weights that the first stage starts from, of `config.model` but for image size and text length; or a
            function that loads them, which is called only where no checkpoint is there to go on from. None: drawn.
        pairs: training pairs, in place of `config.data.train`.
        tokenizer: in place of `config.data.tokenizer`.
        keep_image: chooses patches in the stages that keep a part of them, in place of `image_reduction`.
        keep_text: chooses tokens, in place of `text_reduction`.
        loss: in place of the stages' `loss`.
        optimizer: in place of the stages' `optim`, of which the frozen arrays count still.
        evaluators: called as `config.evaluation.every_steps` says and at the end of each stage; by all processes at
            once, so they may share the work.
        profile_steps: steps of which the first process writes a trace into `profile/`, as `range(10, 13)` for the steps
            10 to 12, counted from 1 over all stages; None: no trace. A resumed run may name others.
        console: show the live line.

    Raises:
        ValueError: the config cannot run here or has not the steps to profile, the directory holds another run, or
            processes differ in what they start.
        FileNotFoundError: data or vocabulary are missing.
        FloatingPointError: the loss is no longer finite.
        InterruptedError: SIGTERM came; what was done is saved, and the same call continues from there.
    """
    with watching(), shielded():
        try:
            given = Given(model, pairs, tokenizer, Parts(keep_image, keep_text, loss, optimizer))
            return _train(config, Path(run_dir), given, evaluators, profile_steps, console=console)
        except Terminated:
            conclude()
            raise InterruptedError("stopped by SIGTERM with nothing to save") from None


def _train(
    config: RunConfig,
    run_dir: Path,
    given: Given,
    evaluators: Sequence[Evaluator],
    profile_steps: range | None,
    *,
    console: bool,
) -> RunResult:
    began = time.perf_counter()
    paths = RunDirectory(run_dir)
    check_versions()
    opened = together(lambda: open_run(config, paths, given, profile_steps))
    config, tokenizer, pairs = opened.config, opened.tokenizer, opened.pairs
    check_same({"config": config_to_json(config)} | fingerprints(pairs, tokenizer))
    primary = jax.process_index() == 0

    def claim() -> None:
        if primary:
            with shielded():
                paths.claim(config, fingerprints(pairs, tokenizer))
                tokenizer.save(paths.tokenizer)

    together(claim)
    check_shared(paths)
    run = _Run(
        config, paths, pairs, tokenizer, given.parts, make_mesh(), tuple(evaluators), primary=primary, console=console
    )
    if console and primary:
        for change in opened.changes:
            sys.stderr.write(f"Continues with another {change}: same weights up to rounding\n")

    model_key, stage_keys = run_keys(config.seed, len(config.stages))
    model = opened.model
    if model is None:
        model = eqx.filter_jit(make_clip)(stage_model(config, config.stages[0]), key=model_key)
    end = StageEnd(model, None, {})
    del model, opened
    with Profile(profile_steps if primary else None, paths.profile) as profile:
        for place, key in enumerate(stage_keys):
            end = _train_stage(run, place, end.model, profile, key=key)
    if primary:
        save_weights(end.model, paths.model)
        if end.average is not None:
            save_weights(end.average, paths.average)
    return RunResult(end.model, end.average, end.evaluation, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    config: RunConfig
    paths: RunDirectory
    pairs: PairSource
    tokenizer: Tokenizer
    parts: Parts
    mesh: Mesh
    evaluators: tuple[Evaluator, ...]
    primary: bool
    console: bool


class StageEnd(NamedTuple):
    """What a stage leaves, whole on one device of each process."""

    model: CLIP
    """Its arrays are gone once the next stage has begun."""
    average: CLIP | None
    """Of the last stage, if it kept one."""
    evaluation: dict[str, float]


def _train_stage(run: _Run, place: int, model: CLIP, profile: Profile, *, key: Key) -> StageEnd:
    """Train one stage from its newest checkpoint, or else from `model`."""
    config, stage = run.config, run.config.stages[place]
    begin = start_stage(config, stage, model, run.mesh, run.parts)
    data_seed = _data_seed(config.seed, place)
    position = {"seed": data_seed, "fingerprint": run.pairs.fingerprint}
    steps_before = sum(earlier.steps for earlier in config.stages[:place])

    with contextlib.ExitStack() as stack:
        stack.callback(hold, False)
        checkpoints = stack.enter_context(Checkpoints(run.paths.checkpoints(stage.name), config.checkpoint))
        saved = checkpoints.latest_step()
        step = start = saved or 0
        profile.resume(steps_before + start)
        state = _state_at(saved, run, stage, begin, checkpoints, position, key=key)
        owed = _owes_evaluation(run, stage, start)
        if start == stage.steps and not owed:
            return _end(state, run, stage, last_evaluation(run.paths, stage))

        log = stack.enter_context(
            StageLog(config, place, run.paths, start=start, write=run.primary, console=run.console)
        )
        results: dict[str, float] = {}
        try:
            if owed:
                results = _evaluate(run, state, log, step)
            if start == stage.steps:
                return _end(state, run, stage, results)
            batches = stack.enter_context(contextlib.closing(_open_batches(run, stage, data_seed, start)))
            # Ahead of the first batch: the compiler's time is known, and the readers fill their buffers meanwhile.
            tick = time.perf_counter()
            with interruptible():
                lowered = begin.step.lower(begin.state, abstract_batch(config.data, stage, run.mesh))
            train_step = compile_step(lowered)
            log.compiled(time.perf_counter() - tick)
            hot_path = HotPath(train_step, batches, run.mesh, log, steps=stage.steps - start)
            hold(True)
            while step < stage.steps:
                profile.begin(steps_before + step + 1, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=steps_before + step + 1):
                    state = hot_path.advance(step + 1, state)
                step += 1
                profile.end(steps_before + step, state)

                evaluate = bool(run.evaluators) and _due(step, config.evaluation.every_steps, stage)
                save = _due(step, config.checkpoint.every_steps, stage)
                if evaluate or save or _due(step, config.log_every_steps, stage):
                    log.flush()
                if evaluate:
                    results = _evaluate(run, state, log, step)
                if save:
                    # After the records of this step: what a checkpoint continues from is already on file.
                    checkpoints.save(step, state, position | {"batches": step})
                    saved = step
        except Terminated:
            conclude()
            if saved != step:
                log.flush()
                checkpoints.save(step, state, position | {"batches": step})
            raise InterruptedError(
                f"stopped by SIGTERM after step {step} of stage {stage.name!r}, which is saved"
            ) from None
        return _end(state, run, stage, results)


def _state_at(
    step: int | None,
    run: _Run,
    stage: StageConfig,
    begin: StageStart,
    checkpoints: Checkpoints,
    position: dict[str, Any],
    *,
    key: Key,
) -> TrainState:
    """The state of a checkpoint, or, with None, that before the first step.

    The arrays that the stage starts from are given up, lest the weights are held twice for as long as it lasts.
    """
    if step is not None:
        state, saved = checkpoints.restore(step, begin.state)
        _check_position(saved, position, run.config.data.train or ", ".join(run.config.data.mixture))
    elif isinstance(begin.model.logit_scale, jax.Array):
        state = first_state(begin, stage, run.mesh, key=key)
    else:
        raise ValueError(
            f"{run.paths.checkpoints(stage.name)} holds no checkpoint, but later stages have some: put it back, or "
            "choose another run directory."
        )
    for array in jax.tree.leaves(begin.model):
        if isinstance(array, jax.Array):
            array.delete()
    return state


def _end(state: TrainState, run: _Run, stage: StageConfig, evaluation: dict[str, float]) -> StageEnd:
    averaged = state.averaged_model if stage is run.config.stages[-1] else None
    model, average = whole_on_one_device((state.model, averaged), run.mesh)
    return StageEnd(model, average, evaluation)


def _due(step: int, every: int, stage: StageConfig) -> bool:
    return step == stage.steps or (every > 0 and step % every == 0)


def _evaluate(run: _Run, state: TrainState, log: StageLog, step: int) -> dict[str, float]:
    """Measure the state and record it. SIGTERM ends it; the evaluation is owed then."""
    model = state.averaged_model if run.config.evaluation.ema else state.model
    whole = cast(CLIP, whole_on_one_device(model, run.mesh))
    with interruptible():
        results = {name: float(value) for evaluator in run.evaluators for name, value in evaluator(whole).items()}
    meet()
    log.evaluation(step, results)
    return results


def _owes_evaluation(run: _Run, stage: StageConfig, step: int) -> bool:
    """Whether the run was stopped after a step, before the evaluation that was due then."""
    if not run.evaluators or step == 0 or not _due(step, run.config.evaluation.every_steps, stage):
        return False
    return texts_of_all(str(not evaluated(run.paths, stage, step)))[0] == str(True)


def _data_seed(seed: int, place: int) -> int:
    """A data seed for each stage, so that a stage does not repeat the order of the one before."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _open_batches(run: _Run, stage: StageConfig, seed: int, start: int) -> BatchIterator:
    return training_batches(
        run.pairs,
        open_texts(run.pairs, run.tokenizer, run.config.data),
        run.config.data,
        stage,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        start_step=start,
    )


def _check_position(saved: dict[str, Any], now: dict[str, Any], train: str) -> None:
    if saved["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"The training data at {train} changed since the checkpoint was written, so its order cannot be continued: "
            "put the data back as it was, or start a new run directory."
        )
