"""A run that starts from open_clip's weights against open_clip's own fine-tuning of them, on the same pictures."""

import importlib.util
import json

import numpy as np
import pytest


if any(importlib.util.find_spec(name) is None for name in ("open_clip", "open_clip_train", "torch")):
    pytest.skip("open_clip is not installed", allow_module_level=True)

import safetensors.numpy
from helpers import write_shards, write_vocabulary
from test_bridge_fidelity import CLIPA, live_model, their_arrays, train_theirs

from clipa_eqx.cli import main
from clipa_eqx.config import load_run_config, OptimConfig
from clipa_eqx.data import load_tokenizer, open_pairs, open_texts, training_batches
from clipa_eqx.interop import load_pretrained
from clipa_eqx.train import Records
from clipa_eqx.train._loop import _data_seed


STEPS, ROWS = 10, 16


def batches_of(config):
    """What the run trained on, read anew."""
    (stage,) = config.stages
    pairs, tokenizer = open_pairs(config.data), load_tokenizer(config.data.tokenizer)
    batches = training_batches(
        pairs,
        open_texts(pairs, tokenizer, config.data),
        config.data,
        stage,
        seed=_data_seed(config.seed, 0),
        process_index=0,
        process_count=1,
        start_step=0,
    )
    try:
        for _ in range(STEPS):
            batch = next(batches)
            yield {"pixels": np.asarray(batch.pixels), "tokens": np.asarray(batch.tokens)[:, : stage.text_length]}
    finally:
        batches.close()


def test_fine_tuning_equals_open_clip(tmp_path):
    """`clipa train --init-from`: losses and weights after ten steps, by open_clip's rules, within 1e-4."""
    write_shards(tmp_path / "train")
    write_vocabulary(tmp_path / "vocab.txt")
    theirs, weights = live_model(CLIPA), tmp_path / "weights"
    arrays = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    weights.mkdir()
    safetensors.numpy.save_file(arrays, weights / "open_clip_model.safetensors")
    (weights / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIPA}))
    optim = {
        "learning_rate": 2e-3,
        "warmup_steps": 3,
        "warmup_first": "fraction",
        "decay_set": "all_but_norms",
        "weight_decay": 0.2,
        "clip_norm": 0,
        "image_layer_decay": 1,
        "text_layer_decay": 1,
    }
    sets = [f"stages.0.optim.{name}={value}" for name, value in optim.items()]
    sets += [f"stages.0.samples={STEPS * ROWS}", f"stages.0.batch_size={ROWS}", "log_every_steps=1"]
    places = ["--data.train", tmp_path / "train", "--data.tokenizer", tmp_path / "vocab.txt"]
    command = ["train", "--init-from", weights, *places, "--run-dir", tmp_path / "run", "--set", *sets]
    assert main([str(argument) for argument in command]) == 0

    config = load_run_config(tmp_path / "run" / "config.json")
    ours: OptimConfig = config.stages[0].optim
    losses, _, end = train_theirs(theirs, ours, "softmax", batches_of(config), steps=STEPS)
    rows = [row["loss"] for row in Records(tmp_path / "run" / "metrics.jsonl").read() if "loss" in row]
    assert len(rows) == STEPS
    np.testing.assert_allclose(rows, losses, rtol=1e-4)
    found = their_arrays(load_pretrained(tmp_path / "run").model)
    assert len(end) > 30
    for name, array in end.items():
        moved = array - arrays[name]
        # The second part is what float32 resolves of the array itself, and counts where its steps cancelled.
        within = 1e-4 * np.linalg.norm(moved) + 5e-7 * np.linalg.norm(array)
        assert np.linalg.norm(found[name] - array) <= within, name
        assert moved.any()
