"""One process of a run over several: the first gradient, then training. Started by test_distributed.py.

Arguments: config.json, run directory, file for the gradient or "-" for none, and, for several processes, address,
count, index.
"""

import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax

from clipa_eqx.config import load_run_config, stage_model
from clipa_eqx.data import load_tokenizer, open_pairs, open_texts, training_batches
from clipa_eqx.evaluation import make_evaluators
from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh, place, to_global, whole_on_one_device
from clipa_eqx.train import init_state, make_train_step, state_shardings, train


def first_gradient(config):
    """Gradient of the first batch, read off the weights that a step of rate -1 without an optimiser leaves."""
    stage = config.stages[0]
    mesh = make_mesh()
    model = eqx.filter_jit(make_clip)(stage_model(config, stage), key=jax.random.key(0))
    before = [np.array(leaf) for leaf in jax.tree.leaves(model)]
    optimizer = optax.identity()
    state = init_state(model, optimizer, key=jax.random.key(1))
    state = place(state, state_shardings(state, config.shard, mesh))
    pairs = open_pairs(config.data)
    batches = training_batches(
        pairs,
        open_texts(pairs, load_tokenizer(config.data.tokenizer), config.data),
        config.data,
        stage,
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batch = next(batches)
    batches.close()
    rows = {"pixels": batch.pixels, "tokens": batch.tokens, "word_class": batch.word_class}
    step = make_train_step(stage, optax.constant_schedule(1.0), optimizer, mesh, shard=config.shard)
    state, _ = step(state, to_global(rows, mesh))
    after = [np.array(leaf) for leaf in jax.tree.leaves(whole_on_one_device(state.model, mesh))]
    return [b - a for a, b in zip(before, after, strict=True)]


def main():
    config_path, run_dir, gradient_path, *processes = sys.argv[1:]
    if processes:
        address, count, index = processes
        jax.distributed.initialize(address, int(count), int(index))
    config = load_run_config(Path(config_path))
    if gradient_path != "-":
        gradient = first_gradient(config)
        if jax.process_index() == 0:
            np.savez(gradient_path, *gradient)
    evaluators = make_evaluators(config.evaluation, load_tokenizer(config.data.tokenizer))
    train(config, Path(run_dir), evaluators=evaluators, console=False)


if __name__ == "__main__":
    main()
