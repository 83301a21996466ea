"""The training run, in the order in which it happens."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh

from .._types import Key
from ..config import check_run, RunConfig, stage_model, StageConfig
from ..data import BatchIterator, load_tokenizer, open_pairs, open_texts, PairSource, Tokenizer, training_batches
from ..models import CLIP, make_clip, save_weights, transfer, with_execution
from ..sharding import make_mesh, replicate, to_global
from ._checkpoint import Checkpoints
from ._metrics import last_evaluation, StageLog
from ._optim import make_optimizer, make_schedule
from ._run_dir import RunDirectory
from ._state import init_state, run_keys, TrainState
from ._step import make_train_step


Evaluator = Callable[[CLIP], Mapping[str, float]]
"""Measures a model on this process's devices. It sees the image size and text length in `model.config`."""

# Steps that may be queued on the devices before the host waits: enough to hide the host's work, few enough to
# keep the queued batches' memory small.
_STEPS_AHEAD = 2


@dataclass(frozen=True)
class RunResult:
    """What a finished run hands back."""

    model: CLIP
    evaluation: dict[str, float]
    """Results of the last evaluation; empty without evaluators."""
    seconds: float
    """Wall time of this call; a resumed run counts from its resumption."""


def train(config: RunConfig, run_dir: Path, *, evaluators: Sequence[Evaluator] = (), console: bool = True) -> RunResult:
    """Train every stage of a run, or continue it from where its directory says it was.

    Starting the same config in the same directory again resumes: weights, optimiser, order of the data and randomness
    go on bit for bit. Each later stage starts from the weights of the one before, with positions moved to its sizes by
    [`transfer`][clipa_eqx.models.transfer] and a fresh optimiser, as CLIPA tunes.

    Args:
        config: the run.
        run_dir: where `config.json`, `metrics.jsonl`, checkpoints and, at the end, `model.safetensors` go. With several
            processes, a folder that all of them see.
        evaluators: called as `config.evaluation.every_steps` says and at the end of each stage.
        console: show the live line.

    Raises:
        ValueError: the config cannot run here, or the directory holds another run.
        FileNotFoundError: data or vocabulary are missing.
        FloatingPointError: the loss is no longer finite.
    """
    began = time.perf_counter()
    check_run(config, num_devices=jax.device_count(), num_processes=jax.process_count())
    primary = jax.process_index() == 0
    tokenizer = load_tokenizer(config.data.tokenizer)
    check_vocabulary(config, tokenizer)
    pairs = open_pairs(config.data)
    paths = RunDirectory(run_dir)
    config = paths.settle(config)
    paths.claim(config, write=primary)
    if primary:
        tokenizer.save(paths.tokenizer)

    run = _Run(
        config,
        paths,
        pairs,
        tokenizer,
        make_mesh(),
        tuple(evaluators) if primary else (),
        primary=primary,
        console=console,
    )
    model_key, stage_keys = run_keys(config.seed, len(config.stages))
    model = eqx.filter_jit(make_clip)(stage_model(config, config.stages[0]), key=model_key)
    results: dict[str, float] = {}
    for place, key in enumerate(stage_keys):
        model, results = _train_stage(run, place, model, key=key)
    if primary:
        save_weights(model, paths.model)
    return RunResult(model=model, evaluation=results, seconds=time.perf_counter() - began)


def check_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Make sure that the model's embedding table and special ids are those of the vocabulary.

    Raises:
        ValueError: the table is too small, or padding or end ids differ.
    """
    text = config.model.text
    if tokenizer.vocab_size > text.vocab_size:
        raise ValueError(
            f"The vocabulary {config.data.tokenizer} has {tokenizer.vocab_size} entries, the model's table "
            f"text.vocab_size={text.vocab_size} rows; use a model with at least as many rows."
        )
    if tokenizer.pad_id != text.pad_id:
        raise ValueError(
            f"The vocabulary {config.data.tokenizer} pads with id {tokenizer.pad_id}, the model expects "
            f"text.pad_id={text.pad_id}."
        )
    if text.end_id >= 0 and tokenizer.end_id != text.end_id:
        raise ValueError(
            f"The vocabulary {config.data.tokenizer} ends texts with id {tokenizer.end_id}, the model expects "
            f"text.end_id={text.end_id}."
        )


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


def _train_stage(run: _Run, place: int, model: CLIP, *, key: Key) -> tuple[CLIP, dict[str, float]]:
    """Train one stage from its newest checkpoint, or else from `model`; returns its model and last evaluation."""
    config, stage = run.config, run.config.stages[place]
    model = transfer(model, stage_model(config, stage), image_positions=stage.position_transfer)
    model = with_execution(model, layers=config.layers, remat_image=stage.remat_image, remat_text=stage.remat_text)
    schedule = make_schedule(stage.optim, stage.steps)
    optimizer = make_optimizer(stage.optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=key), run.mesh)
    data_seed = _data_seed(config.seed, place)
    position = {"seed": data_seed, "fingerprint": run.pairs.fingerprint}

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run.paths.checkpoints(stage.name), config.checkpoint))
        start = checkpoints.latest_step() or 0
        if start:
            state, saved = checkpoints.restore(start, state)
            _check_position(saved, position, config.data.train or ", ".join(config.data.mixture))
        if start == stage.steps:
            return local_model(state), last_evaluation(run.paths, stage)

        log = stack.enter_context(
            StageLog(config, place, run.paths, start=start, write=run.primary, console=run.console)
        )
        batches = stack.enter_context(contextlib.closing(_open_batches(run, stage, data_seed, start)))
        train_step = make_train_step(stage, schedule, optimizer, run.mesh)
        queued: deque[jax.Array] = deque()
        results: dict[str, float] = {}
        for step in range(start + 1, stage.steps + 1):
            tick = time.perf_counter()
            batch = next(batches)
            waited_s = time.perf_counter() - tick
            rows = {"pixels": batch.pixels, "tokens": batch.tokens, "word_class": batch.word_class}
            state, metrics = train_step(state, to_global(rows, run.mesh))
            log.add(step, metrics, waited_s=waited_s, faults=batch.faults)
            queued.append(metrics["loss"])
            if len(queued) > _STEPS_AHEAD:
                queued.popleft().block_until_ready()

            evaluate = bool(run.evaluators) and _due(step, config.evaluation.every_steps, stage)
            save = _due(step, config.checkpoint.every_steps, stage)
            if evaluate or save or _due(step, config.log_every_steps, stage):
                log.flush()
            if evaluate:
                results = _evaluate(run.evaluators, local_model(state))
                log.evaluation(step, results)
            if save:
                # After the records of this step: what a checkpoint continues from is already on file.
                checkpoints.save(step, state, position | {"batches": step})
        return local_model(state), results


def local_model(state: TrainState) -> CLIP:
    """The model of a replicated state as arrays of one device of this process."""
    return jax.tree.map(lambda array: array.addressable_data(0), state.model)


def _due(step: int, every: int, stage: StageConfig) -> bool:
    return step == stage.steps or (every > 0 and step % every == 0)


def _evaluate(evaluators: Sequence[Evaluator], model: CLIP) -> dict[str, float]:
    return {name: value for evaluator in evaluators for name, value in evaluator(model).items()}


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
