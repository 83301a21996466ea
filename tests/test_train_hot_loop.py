"""What a step must not cost: copies of its state, transfers that nobody asked for, compiling again, dropped patches."""

import re

import jax
import jax.numpy as jnp
import pytest
from helpers import TINY_MODEL

from clipa_eqx.config import DataConfig, OptimConfig, RunConfig, StageConfig
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train import lower_step


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
