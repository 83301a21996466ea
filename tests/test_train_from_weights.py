"""Runs that start from weights: the model that is trained is the one that was given, whatever form it came in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny_run, write_shards, write_vocabulary
from starts import FORMS, tune_config

from clipa_eqx.config import load_run_config
from clipa_eqx.data import load_tokenizer, open_pairs, open_texts, training_batches
from clipa_eqx.init_from import open_start, starting_model
from clipa_eqx.interop import export_open_clip, load_pretrained
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.models import named_leaves, normalize_pixels, scale_pixels
from clipa_eqx.sharding import make_mesh, whole_on_one_device
from clipa_eqx.train import Records, train
from clipa_eqx.train._loop import _data_seed
from clipa_eqx.train._stage import first_state, start_stage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


@pytest.fixture(scope="module")
def finished(data):
    """A finished run of two stages, with its checkpoints."""
    train(tiny_run(data), data / "finished", console=False)
    return data / "finished"


def embeddings(model):
    rng = np.random.default_rng(5)
    side, text = model.config.vision.image_size, model.config.text
    pixels = rng.standard_normal((3, side, side, 3), np.float32)
    tokens = rng.integers(1, text.vocab_size, (3, text.context_length)).astype(np.int32)
    if text.end_id >= 0:
        tokens[:, -1] = text.end_id
    both = jax.jit(lambda m, x, t: (jax.vmap(m.encode_image)(x), jax.vmap(m.encode_text)(t)))
    return both(model, jnp.asarray(pixels), jnp.asarray(tokens))


def before_the_first_update(config):
    """What the devices hold once the first stage is ready to step."""
    (stage,), mesh = config.stages, make_mesh()
    start = start_stage(config, stage, starting_model(config), mesh)
    return whole_on_one_device(first_state(start, stage, mesh, key=jax.random.key(0)).model, mesh)


def assert_same_arrays(one, other):
    found, wanted = named_leaves(one), named_leaves(other)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("shard", ["none", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_begins_with_the_model_of_the_weights(form, shard, tmp_path):
    name, source = FORMS[form](tmp_path)
    if shard == "all" and (source.config.vision.width % 8 or source.config.text.width % 8):
        pytest.skip("widths that eight devices do not divide")
    model = before_the_first_update(tune_config(source, name, shard=shard))
    assert_same_arrays(model, source)
    for ours, theirs in zip(embeddings(model), embeddings(source), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_each_checkpoint_of_a_run_is_a_start(finished):
    """Of a first stage with shorter sequences, and of a last one, which is the run's own model."""
    last = open_start(str(finished / "checkpoints" / "all" / "4"))
    assert_same_arrays(last.model, load_pretrained(finished).model)
    assert last.found_tokenizer.fingerprint == load_pretrained(finished).tokenizer.fingerprint
    first = open_start(str(finished / "checkpoints" / "few" / "6"))
    assert (first.config.vision.image_size, first.config.text.context_length) == (24, 5)
    assert not np.array_equal(first.model.text.embedding, last.model.text.embedding)


def test_a_run_that_is_not_finished_starts_another_from_its_newest_checkpoint(finished, tmp_path):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for name in ("config.json", "tokenizer", "checkpoints"):
        (unfinished / name).symlink_to(finished / name)
    assert_same_arrays(open_start(str(unfinished)).model, load_pretrained(finished).model)


def test_weights_without_updates_are_exported_as_they_came(tmp_path):
    name, source = FORMS["open_clip"](tmp_path)
    model = before_the_first_update(tune_config(source, name))
    found = load_pretrained(name)
    export_open_clip(dataclasses.replace(found, model=model), tmp_path / "again")
    weights = "open_clip_model.safetensors"
    one, other = (safetensors.numpy.load_file(folder / weights) for folder in (tmp_path / "again", name))
    assert one.keys() == other.keys()
    assert all(one[key].tobytes() == other[key].tobytes() for key in other)


def test_at_a_tiny_rate_the_losses_are_those_of_the_source(data, tmp_path):
    name, source = FORMS["open_clip"](tmp_path)
    config = tune_config(source, name)
    (stage,) = config.stages
    stage = dataclasses.replace(stage, samples=160)
    config = dataclasses.replace(
        config,
        stages=(stage,),
        log_every_steps=1,
        data=dataclasses.replace(tiny_run(data).data, threads=1),
    )
    result = train(config, tmp_path / "run", model=lambda: starting_model(config), console=False)
    losses = [row["loss"] for row in Records(tmp_path / "run" / "metrics.jsonl").read()]
    pairs, tokenizer = open_pairs(config.data), load_tokenizer(config.data.tokenizer)
    batches = training_batches(
        pairs,
        open_texts(pairs, tokenizer, config.data),
        load_run_config(tmp_path / "run" / "config.json").data,
        stage,
        seed=_data_seed(config.seed, 0),
        process_index=0,
        process_count=1,
        start_step=0,
    )

    @jax.jit
    def loss(pixels, tokens):
        images = jax.vmap(lambda x: source.encode_image(normalize_pixels(scale_pixels(x), source.config.vision)))(
            pixels
        )
        return softmax_contrastive(images, jax.vmap(source.encode_text)(tokens), source.logit_scale)

    try:
        wanted = []
        for _ in range(10):
            batch = next(batches)
            wanted.append(float(loss(batch.pixels, batch.tokens[:, : stage.text_length])))
    finally:
        batches.close()
    np.testing.assert_allclose(losses, wanted, atol=1e-3)
    assert result.model.config == source.config
