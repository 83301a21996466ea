"""What a run is given as values: its own reductions, loss, optimiser, pairs and evaluator; none edits the package."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import jpeg, tiny_run, write_shards, write_vocabulary

from clipa_eqx.config import EvalConfig, load_run_config
from clipa_eqx.data import load_tokenizer, Pair
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parts")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


def one_stage(data, **fields):
    run = tiny_run(data)
    stage = dataclasses.replace(run.stages[0], samples=32, **fields)
    return dataclasses.replace(run, stages=(stage,))


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def brightest(pixels, grid, count, *, key):
    """Keeps the brightest patches: a choice by looking."""
    side = pixels.shape[0] // grid[0]
    means = pixels.reshape(grid[0], side, grid[1], side, 3).mean(axis=(1, 3, 4)).reshape(-1)
    return jnp.sort(jnp.argsort(-means)[:count])


def first_tokens(tokens, length, *, priority, pad_id, end_id, key):
    return jnp.arange(length)


def doubled(image_embed, text_embed, model, **form):
    return 2 * softmax_contrastive(image_embed, text_embed, model.logit_scale, **form)


class Memory:
    """Pairs in memory."""

    skipped = {}
    fingerprint = "in memory"

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return Pair(self.key(index), jpeg(index, "red" if index % 2 else "blue", "left"), self.captions(index))

    def key(self, index):
        return f"pair {index}"

    def captions(self, index):
        return ("a red half at the left" if index % 2 else "a blue half at the left",)


def test_parts_of_ones_own_train_and_are_asked_for_again(data, tmp_path):
    run = one_stage(data)
    plain, own = tmp_path / "plain", tmp_path / "own"
    train(run, plain, console=False)
    parts = {"keep_image": brightest, "keep_text": first_tokens, "loss": doubled}
    seen = []

    def evaluator(model):
        seen.append(model.config.vision.image_size)
        return {"scale": jnp.exp(model.logit_scale)}

    result = train(
        dataclasses.replace(run, evaluation=EvalConfig(every_steps=1)),
        str(own),
        **parts,
        optimizer=lambda schedule, model: optax.lion(schedule),
        evaluators=(evaluator,),
        console=False,
    )
    assert seen
    assert isinstance(result.evaluation["scale"], float)
    assert losses(own)[0] != losses(plain)[0]
    train(run, tmp_path / "doubled", loss=doubled, console=False)
    np.testing.assert_allclose(losses(tmp_path / "doubled")[0], 2 * losses(plain)[0], rtol=1e-6)
    given = load_run_config(own / "config.json").given
    assert [name.split("=")[0] for name in given] == ["keep_image", "keep_text", "loss", "optimizer"]
    assert given[2].endswith("test_train_parts:doubled")
    with pytest.raises(ValueError, match=r"must be given again: keep_text=.*first_tokens, loss=.*doubled"):
        train(run, own, keep_image=brightest, console=False)


def test_pairs_and_tokenizer_of_ones_own(data, tmp_path):
    run = one_stage(data)
    with pytest.raises(ValueError, match="is given pairs= and config.data.train"):
        train(run, tmp_path / "run", pairs=Memory(), console=False)
    empty = dataclasses.replace(run, data=dataclasses.replace(run.data, train="", tokenizer=""))
    tokenizer = load_tokenizer(str(data / "vocab.txt"))
    train(empty, tmp_path / "run", pairs=Memory(), tokenizer=tokenizer, console=False)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"keep_image": lambda pixels, grid, count, *, key: jnp.arange(3)},
            r"keep_image must return 4 positions.*\(3,\)",
        ),
        (
            {"keep_image": lambda pixels, grid, count, *, key: jnp.ones(4)},
            "keep_image must return 4 positions.*float32",
        ),
        ({"keep_text": lambda tokens, length, **_: np.arange(5)}, None),
        ({"keep_text": lambda tokens, length, **_: tokens}, "keep_text must return 5 positions"),
        ({"loss": lambda image, text, model, **_: image}, "loss must return one floating-point number"),
        ({"optimizer": lambda schedule, model: None}, "it returned NoneType"),
    ],
)
def test_a_part_with_a_wrong_result_is_one_message(data, tmp_path, part, message):
    run = one_stage(data)
    if message is None:
        train(run, tmp_path / "run", **part, console=False)
        return
    with pytest.raises((ValueError, TypeError), match=message):
        train(run, tmp_path / "run", **part, console=False)


def test_patches_of_ones_own_need_a_stage_that_keeps_a_part(data, tmp_path):
    run = one_stage(data, image_reduction="none", keep_patches=0)
    with pytest.raises(ValueError, match="keep_image is given, but no stage keeps a part of its patches"):
        train(run, tmp_path / "run", keep_image=brightest, console=False)
    assert not (tmp_path / "run").exists()
