"""What a step must not cost: copies of its state, transfers that nobody asked for, compiling again, dropped patches."""

import contextlib
import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY_MODEL, tiny_run, trace_events, write_shards, write_vocabulary

from clipa_eqx.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    RunConfig,
    StageConfig,
    VisionConfig,
)
from clipa_eqx.data import load_tokenizer
from clipa_eqx.evaluation import make_evaluators
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train import lower_step, Records, train


STAGE = StageConfig(
    samples=160,
    batch_size=16,
    image_size=16,
    image_reduction="random",
    keep_patches=8,
    text_length=6,
    ema_decay=0.9,
    optim=OptimConfig(learning_rate=1e-3),
)
STEPS = (26, 24)
# What is copied to the devices because a compiled function is called with it.
IMPLICIT = (np.ones(3, np.float32), 1.0)
EVALUATED = (5, 10, 15, 20, 25, 26), (5, 10, 15, 20, 24)


class Watch:
    """Two evaluators, called before and after the real ones, that take down what compiles and guard what lies between.

    From the end of each evaluation but the last of a stage to the beginning of the next, the thread of the loop runs
    under `jax.transfer_guard("disallow")`: steps, reading their metrics, checkpoints.
    """

    def __init__(self):
        self.compiled = [[]]
        """Programs that were compiled up to the end of each evaluation, and after the last."""
        self.guarded = 0
        """Stretches at whose end the guard was found to be on."""
        self.guard = contextlib.ExitStack()
        self._twice = jax.jit(lambda x: x + x)
        for implicit in IMPLICIT:
            self._twice(implicit)

    def on_event(self, event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled[-1].append(details["fun_name"])

    def begin(self, model):
        if self._within_a_stage():
            for implicit in IMPLICIT:
                with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
                    self._twice(implicit)
            self.guarded += 1
        self.guard.close()
        return {}

    def end(self, model):
        self.compiled.append([])
        if self._within_a_stage():
            self.guard.enter_context(jax.transfer_guard("disallow"))
        return {}

    def _within_a_stage(self):
        return len(self.compiled) - 1 not in (0, len(EVALUATED[0]), len(EVALUATED[0]) + len(EVALUATED[1]))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Fifty steps in two stages with all that happens around them, and where it was written."""
    directory = tmp_path_factory.mktemp("watched")
    write_shards(directory / "train", broken=(3,))
    write_shards(directory / "retrieval", pairs=21, shards=1)
    write_vocabulary(directory / "vocab.txt")
    evaluation = EvalConfig(retrieval=str(directory / "retrieval"), every_steps=5, batch_size=16, ema=True)
    run = tiny_run(
        directory,
        log_every_steps=3,
        checkpoint=CheckpointConfig(every_steps=4),
        evaluation=evaluation,
        # Everything split, so that evaluations gather.
        shard="all",
    )
    stages = (
        dataclasses.replace(stage, samples=16 * steps, ema_decay=0.9)
        for stage, steps in zip(run.stages, STEPS, strict=True)
    )
    watch = Watch()
    evaluators = (watch.begin, *make_evaluators(evaluation, load_tokenizer(run.data.tokenizer)), watch.end)
    jax.monitoring.register_event_duration_secs_listener(watch.on_event)
    try:
        train(
            dataclasses.replace(run, stages=tuple(stages)),
            directory / "run",
            evaluators=evaluators,
            profile_steps=range(30, 32),
            console=False,
        )
    finally:
        watch.guard.close()
        jax.monitoring.unregister_event_duration_listener(watch.on_event)
    return watch, directory / "run"


def test_each_stage_compiles_its_step_once(watched):
    watch, _ = watched
    counts = [programs.count("jit(step)") for programs in watch.compiled]
    assert counts == [1, *[0] * 5, 1, *[0] * 5]


def test_nothing_compiles_again_after_its_first_use(watched):
    """Not in a step, a checkpoint or an evaluation, nor in the last ones of a stage."""
    watch, run_dir = watched
    rows = Records(run_dir / "metrics.jsonl").read()
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 27), *range(1, 25)]
    assert tuple(row["step"] for row in rows if "loss" not in row) == EVALUATED[0] + EVALUATED[1]
    assert "jit(_embed_pixels)" in watch.compiled[0]
    assert watch.compiled[1:6] == [[]] * 5
    assert watch.compiled[7:] == [[]] * 5


def test_nothing_is_transferred_that_was_not_asked_for(watched):
    """Every step but the first five of a stage ran under the guard, or the run had failed.

    On a CPU the guard catches NumPy arrays and Python numbers that reach a compiled function, and arrays on other
    devices than it wants. Reading an array on the host it catches from jax 0.12 on, and by `np.asarray` alone: what
    `float` would wait for is left to the order of events in test_train_hot_path.py.
    """
    watch, _ = watched
    assert watch.guarded == len(EVALUATED[0]) - 1 + len(EVALUATED[1]) - 1


def test_steps_to_profile_count_over_all_stages(watched):
    _, run_dir = watched
    (events,) = trace_events(run_dir)
    assert [step for name, step in events if name == "train"] == [30, 31]
    assert {"wait for data", "put batch"} <= {name for name, _ in events}


def _aliases(program):
    """Which output of a compiled program takes the memory of which argument."""
    header = re.search(r"input_output_alias=\{(.*?)\}, \w+=", program.as_text())
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", header[1]) if header else ()
    return {int(output or 0): int(argument) for output, argument in pairs}


@pytest.mark.parametrize("shard", ["none", "optimizer", "all"])
def test_the_step_writes_the_new_state_over_the_old(shard):
    run = RunConfig(model=TINY_MODEL, stages=(STAGE,), data=DataConfig(caption_tokens=8), shard=shard)
    lowered = lower_step(run, STAGE, make_mesh())
    state, _ = lowered.args_info[0]
    arrays = len(jax.tree.leaves(state))
    assert _aliases(lowered.compile()) == {place: place for place in range(arrays)}


def test_a_state_that_is_not_given_back_has_no_alias():
    grow = lambda state: state + 1
    assert _aliases(jax.jit(grow).lower(jnp.ones(8)).compile()) == {}
    assert _aliases(jax.jit(grow, donate_argnums=0).lower(jnp.ones(8)).compile()) == {0: 0}


class NoBlocks(eqx.Module):
    """Leaves the patch embedding alone in a tower."""

    def __call__(self, x, *, key=None):
        return x


@pytest.mark.parametrize("with_gradient", [False, True])
def test_patches_that_are_dropped_cost_nothing(with_gradient):
    """Half of the patches take half of the operations of the compiled embedding, and of its gradient."""
    vision = VisionConfig(image_size=128, patch_size=16, width=32, depth=1, heads=1, hidden=32)
    tower = make_clip(dataclasses.replace(TINY_MODEL, vision=vision), key=jax.random.key(0)).vision
    tower = eqx.tree_at(lambda tower: tower.stack, tower, NoBlocks())

    def embed(tower, images, kept):
        return jnp.sum(jax.vmap(lambda pixels, kept: tower(pixels, kept=kept))(images, kept))

    def operations(patches):
        images = jax.ShapeDtypeStruct((4, 128, 128, 3), jnp.float32)
        kept = jax.ShapeDtypeStruct((4, patches), jnp.int32)
        function = jax.grad(embed) if with_gradient else embed
        return jax.jit(function).lower(tower, images, kept).compile().cost_analysis()["flops"]

    products = 2 * 4 * 64 * 768 * 32 * (2 if with_gradient else 1)
    assert operations(64) == pytest.approx(products, rel=0.05)
    assert operations(32) / operations(64) == pytest.approx(0.5, rel=0.02)
