"""The loop in one process: what it leaves, what it hands back, what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import tiny_run, write_shards, write_vocabulary

from clipa_eqx.config import EvalConfig, OptimConfig
from clipa_eqx.interop import load_pretrained
from clipa_eqx.train import Records, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


def _one_stage(data, **fields):
    run = tiny_run(data)
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[1], **fields),))


def _buffers(shape, but):
    """How many arrays of a shape the first device holds whole, without those that were there before."""
    known = {id(array) for array in but}
    shards = [array.addressable_shards[0] for array in jax.live_arrays() if id(array) not in known]
    return len({shard.data.unsafe_buffer_pointer() for shard in shards if shard.data.shape == shape})


@pytest.fixture(scope="module")
def finished(data):
    """A finished run that was evaluated each two steps, the sizes its evaluator saw, and the embedding tables alive."""
    seen, alive = [], []
    before = jax.live_arrays()

    def evaluator(model):
        seen.append((model.config.vision.image_size, model.config.text.context_length))
        alive.append(_buffers(model.text.embedding.shape, but=before))
        return {"norm": float(np.linalg.norm(model.vision.patch.weight))}

    few, full = tiny_run(data).stages
    stages = (few, dataclasses.replace(full, ema_decay=0.5))
    run = tiny_run(data, stages=stages, evaluation=EvalConfig(every_steps=2))
    run_dir = data / "finished"
    return run, run_dir, train(run, run_dir, evaluators=(evaluator,), console=False), (seen, alive)


def test_evaluators_see_the_sizes_of_the_stage(finished):
    _, _, _, (seen, _) = finished
    assert seen == [(24, 5)] * 3 + [(32, 8)] * 2


def test_the_last_evaluation_is_handed_back_and_recorded(finished):
    _, run_dir, result, _ = finished
    rows = [row for row in Records(run_dir / "metrics.jsonl").read() if "norm" in row]
    assert [(row["stage"], row["step"]) for row in rows] == [("few", 2), ("few", 4), ("few", 6), ("all", 2), ("all", 4)]
    assert result.evaluation == {"norm": rows[-1]["norm"]}


def test_the_weights_are_held_once(finished):
    """At the first evaluation of each stage, when no checkpoint of it is being written: table and two moments, in the
    second stage an average too. Neither the weights that a stage began with nor those of earlier ones are left."""
    _, _, _, (_, alive) = finished
    assert (alive[0], alive[3]) == (3, 4)


def test_the_first_block_of_a_stage_says_how_long_the_step_compiled(finished):
    _, run_dir, _, _ = finished
    rows = [row for row in Records(run_dir / "metrics.jsonl").read() if "compile_s" in row]
    assert [(row["stage"], row["step"]) for row in rows] == [("few", 1), ("all", 1)]
    for row in rows:
        # Compiling takes seconds, a step milliseconds: were it counted, the rate would lie below.
        assert row["samples_per_s"] > 16 / row["compile_s"]


def test_a_finished_run_hands_the_same_back_again(finished):
    run, run_dir, result, (seen, _) = finished
    before = len(seen)
    again = train(run, run_dir, evaluators=(lambda model: pytest.fail("nothing is left to evaluate"),), console=False)
    assert again.evaluation == result.evaluation
    assert len(seen) == before
    for a, b in zip(jax.tree.leaves(again.model), jax.tree.leaves(result.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_may_go_on_in_another_layout_and_says_so(finished, capsys):
    run, run_dir, result, _ = finished
    again = train(dataclasses.replace(run, shard="all", layers="unroll"), run_dir)
    error = capsys.readouterr().err
    assert "Continues with another shard: 'none' there, 'all' here" in error
    assert "layers: 'auto' there, 'unroll' here" in error
    for a, b in zip(jax.tree.leaves(again.average), jax.tree.leaves(result.average), strict=True):
        np.testing.assert_array_equal(a, b)
    train(run, run_dir, console=False)


def test_averaged_weights_load_by_name(finished, tmp_path):
    _, run_dir, result, _ = finished
    averaged = load_pretrained(run_dir, ema=True).model
    for a, b in zip(jax.tree.leaves(averaged), jax.tree.leaves(result.average), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(averaged.text.embedding, result.model.text.embedding)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="no model-ema.safetensors: its last stage kept no average"):
        load_pretrained(tmp_path, ema=True)


def test_the_directory_loads_as_a_pretrained_model(finished):
    run, run_dir, result, _ = finished
    pretrained = load_pretrained(run_dir)
    assert pretrained.config == run.model
    assert pretrained.preprocess.image_size == 32
    assert pretrained.tokenizer.encode_batch(["a red half"], 5).tolist() == [[2, 5, 9, 7, 0]]
    for a, b in zip(jax.tree.leaves(pretrained.model), jax.tree.leaves(result.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_directory_says_with_what_it_was_made(finished):
    _, run_dir, _, _ = finished
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert len(environment["devices"]) == 8
    assert list((run_dir / "tensorboard").iterdir())


def test_kept_checkpoints_are_the_last_two(finished):
    _, run_dir, _, _ = finished
    assert sorted(path.name for path in (run_dir / "checkpoints" / "few").iterdir()) == ["4", "6"]


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    run = _one_stage(data, samples=30 * 16, optim=OptimConfig(learning_rate=1e30, warmup_steps=0, weight_decay=0.0))
    with pytest.raises(FloatingPointError, match="the loss is nan at step .*Lower optim.learning_rate"):
        train(run, tmp_path / "run", console=False)


def test_data_that_changed_is_refused(finished, data):
    run, run_dir, _, _ = finished
    (data / "train" / "00001.tar").rename(data / "00001.tar")
    try:
        with pytest.raises(ValueError, match="changed since the checkpoint was written"):
            train(run, run_dir, console=False)
    finally:
        (data / "00001.tar").rename(data / "train" / "00001.tar")


def test_a_run_that_is_not_finished_does_not_load(finished, tmp_path):
    _, run_dir, _, _ = finished
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="has not finished"):
        load_pretrained(tmp_path)
