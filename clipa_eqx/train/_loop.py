"""The training run, in the order in which it happens."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from .._types import Key
from ..config import config_to_json, RunConfig, stage_model, StageConfig
from ..data import BatchIterator, open_texts, PairSource, Tokenizer, training_batches
from ..models import CLIP, make_clip, save_weights, transfer, with_execution
from ..sharding import make_mesh, place, replicate, texts_of_all, whole_on_one_device
from ..termination import conclude, hold, interruptible, meet, shielded, Terminated, watching
from ._checkpoint import Checkpoints
from ._compile import compile_step
from ._hot_path import HotPath
from ._layout import state_shardings
from ._lower import lower_step
from ._metrics import evaluated, last_evaluation, StageLog
from ._optim import make_optimizer, make_schedule, trainable_mask
from ._profile import Profile
from ._run_dir import RunDirectory
from ._start import fingerprints, open_run
from ._state import init_state, run_keys, TrainState
from ._together import check_same, check_shared, check_versions, together


Evaluator = Callable[[CLIP], Mapping[str, float]]
"""Measures a model, all processes together. It sees the image size and text length in `model.config`."""


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
    run_dir: Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    profile_steps: range | None = None,
    console: bool = True,
) -> RunResult:
    """Train every stage of a run, or continue it from where its directory says it was.

    Starting the same config in the same directory again resumes: weights, optimiser, order of the data and randomness
    go on bit for bit; on other devices or processes, or in another layout, up to rounding. Each later stage starts from
    the weights of the one before, with positions moved to its sizes by [`transfer`][clipa_eqx.models.transfer] and a
    fresh optimiser, as CLIPA tunes.

    Args:
        config: the run.
        run_dir: where `config.json`, `metrics.jsonl`, checkpoints and, at the end, `model.safetensors` go. With several
            processes, a folder that all of them see.
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
            return _train(config, run_dir, evaluators, profile_steps, console=console)
        except Terminated:
            conclude()
            raise InterruptedError("stopped by SIGTERM with nothing to save") from None


def _train(
    config: RunConfig,
    run_dir: Path,
    evaluators: Sequence[Evaluator],
    profile_steps: range | None,
    *,
    console: bool,
) -> RunResult:
    began = time.perf_counter()
    paths = RunDirectory(run_dir)
    check_versions()
    config, tokenizer, pairs, changes = together(lambda: open_run(config, paths, profile_steps))
    check_same({"config": config_to_json(config)} | fingerprints(pairs, tokenizer))
    primary = jax.process_index() == 0

    def claim() -> None:
        if primary:
            with shielded():
                paths.claim(config, fingerprints(pairs, tokenizer))
                tokenizer.save(paths.tokenizer)

    together(claim)
    check_shared(paths)
    run = _Run(config, paths, pairs, tokenizer, make_mesh(), tuple(evaluators), primary=primary, console=console)
    if console and primary:
        for change in changes:
            sys.stderr.write(f"Continues with another {change}: same weights up to rounding\n")

    model_key, stage_keys = run_keys(config.seed, len(config.stages))
    end = StageEnd(eqx.filter_jit(make_clip)(stage_model(config, config.stages[0]), key=model_key), None, {})
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
    model = transfer(model, stage_model(config, stage), image_positions=stage.position_transfer)
    model = with_execution(model, layers=config.layers, remat_image=stage.remat_image, remat_text=stage.remat_text)
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    data_seed = _data_seed(config.seed, place)
    position = {"seed": data_seed, "fingerprint": run.pairs.fingerprint}
    steps_before = sum(earlier.steps for earlier in config.stages[:place])

    with contextlib.ExitStack() as stack:
        stack.callback(hold, False)
        checkpoints = stack.enter_context(Checkpoints(run.paths.checkpoints(stage.name), config.checkpoint))
        saved = checkpoints.latest_step()
        step = start = saved or 0
        profile.resume(steps_before + start)
        state = _state_at(saved, run, stage, model, optimizer, checkpoints, position, key=key)
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
                lowered = lower_step(config, stage, run.mesh)
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
    model: CLIP,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    position: dict[str, Any],
    *,
    key: Key,
) -> TrainState:
    """The state of a checkpoint, or, with None, that before the first step; each device gets its own part and no more.

    The arrays of `model` are given up, lest the weights are held twice for as long as the stage lasts.
    """

    def first(model: CLIP, key: Key) -> TrainState:
        averaged = eqx.filter(model, trainable_mask(stage.optim, model)) if stage.ema_decay else None
        return init_state(model, optimizer, averaged=averaged, key=key)

    shapes = jax.eval_shape(first, model, key)
    shardings = state_shardings(shapes, run.config.shard, run.mesh)
    if step is not None:
        put = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
        state, saved = checkpoints.restore(step, jax.tree.map(put, shapes, shardings))
        _check_position(saved, position, run.config.data.train or ", ".join(run.config.data.mixture))
    else:
        start = jax.jit(first, out_shardings=shardings, donate_argnums=0)
        state = start(place(model, shardings.model), replicate(key, run.mesh))
    for array in jax.tree.leaves(model):
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
        results = {name: value for evaluator in run.evaluators for name, value in evaluator(whole).items()}
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
