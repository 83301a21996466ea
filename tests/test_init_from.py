"""Runs that start from weights: of every form, checked before anything is written, and used up by nobody else."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import run_clipa, tiny_run, write_config, write_shards, write_vocabulary
from test_interop_image_tower import make_arrays

from clipa_eqx.config import load_run_config, OptimConfig, RateConfig, TextConfig, VisionConfig
from clipa_eqx.init_from import check_same_model, ImageTower, open_start, starting_model
from clipa_eqx.interop import export_clipa_jax, export_open_clip, load_pretrained, Pretrained
from clipa_eqx.models import named_leaves
from clipa_eqx.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("init")
    write_shards(directory / "train")
    write_vocabulary(directory / "vocab.txt")
    return directory


@pytest.fixture(scope="module")
def source(data):
    """A finished run of two stages, whose checkpoints are all kept."""
    run = tiny_run(data)
    train(run, data / "source", console=False)
    return data / "source"


def tuned(run, **fields):
    """One stage on all tokens at the sizes of the source."""
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[1], name="tune", **fields),))


def embedded(model):
    rng = np.random.default_rng(0)
    # A file of CLIPA-JAX does not tell the size that its computed positions are for.
    side = 24 if model.config.vision.image_size == 24 else 32
    pixels = jnp.asarray(rng.normal(size=(4, side, side, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(5, 13, (4, model.config.text.context_length)))
    return np.concatenate([jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(tokens)])


def same_bits(one, two, prefix=""):
    one, two = named_leaves(one), named_leaves(two)
    for name in one:
        if name.startswith(prefix):
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def write_form(form, source, directory):
    """The source's weights in another project's form."""
    pretrained = load_pretrained(source)
    if form == "open_clip":
        export_open_clip(pretrained, directory)
    elif form == "clipa_jax":
        directory.mkdir()
        export_clipa_jax(pretrained.model, directory / "weights.npz")
        return directory / "weights.npz"
    return directory


@pytest.mark.parametrize("form", ["run", "weights", "checkpoint", "open_clip", "clipa_jax"])
def test_a_run_of_no_steps_ends_with_the_bits_that_it_started_from(data, source, tmp_path, form):
    path = {
        "run": source,
        "weights": source / "model.safetensors",
        "checkpoint": source / "checkpoints" / "all" / "4",
    }.get(form) or write_form(form, source, tmp_path / "weights")
    start = open_start(str(path))
    assert isinstance(start, Pretrained)
    expected = load_pretrained(source).model
    np.testing.assert_allclose(embedded(start.model), embedded(expected), atol=2e-6)
    run = dataclasses.replace(tuned(tiny_run(data), samples=0), init_from=str(path), model=tiny_run(data).model)
    result = train(run, tmp_path / "run", model=lambda: starting_model(run), console=False)
    same_bits(result.model, expected)
    assert load_run_config(tmp_path / "run" / "config.json").init_digest


def test_an_unfinished_run_starts_another_from_its_newest_checkpoint(data, source, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.json", "checkpoints", "tokenizer"):
        (unfinished / name).symlink_to(source / name)
    start = open_start(str(unfinished))
    same_bits(start.model, load_pretrained(source).model)
    earlier = open_start(str(unfinished / "checkpoints" / "few" / "6"))
    assert (earlier.config.vision.image_size, earlier.config.text.context_length) == (24, 5)
    assert earlier.found_tokenizer.fingerprint == start.found_tokenizer.fingerprint
    assert np.abs(embedded(earlier.model)[0, :4] - embedded(start.model)[0, :4]).max() > 1e-4


def test_the_first_losses_are_those_of_the_source(data, source, tmp_path):
    optim = OptimConfig(learning_rate=1e-9)
    config = tuned(tiny_run(data), optim=optim, samples=64)
    losses = {}
    for name, model in (("tuned", load_pretrained(source).model), ("drawn", None)):
        train(config, tmp_path / name, model=model, console=False)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["loss"] for row in rows if "loss" in row]
    pretrained = load_pretrained(source)
    frozen = dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], samples=16),))
    again = train(frozen, tmp_path / "again", model=pretrained.model, console=False)
    assert abs(losses["tuned"][0] - losses["drawn"][0]) > 1e-2
    # The caller's own model is whole afterwards.
    np.testing.assert_allclose(embedded(again.model), embedded(pretrained.model), atol=1e-5)


def test_a_restart_checks_the_digest_and_needs_no_weights_once_there_is_a_checkpoint(data, source, tmp_path):
    config = tuned(tiny_run(data))
    model = load_pretrained(source).model
    other = eqx.tree_at(lambda clip: clip.logit_scale, model, model.logit_scale + 0.5)
    run_dir = tmp_path / "run"

    class Stop(Exception):
        pass

    def stopping(model):
        raise Stop

    few = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every_steps=1))
    with pytest.raises(Stop):
        train(few, run_dir, model=model, evaluators=(stopping,), console=False)
    with pytest.raises(ValueError, match="not those that this run began with"):
        train(few, run_dir, model=other, console=False)
    whole = train(few, run_dir, model=model, console=False)
    same_bits(train(config, tmp_path / "plain", model=model, console=False).model, whole.model)
    same_bits(train(few, run_dir, console=False).model, whole.model)


def test_what_does_not_fit_is_named_and_nothing_is_written(data, source, tmp_path):
    config = tuned(tiny_run(data))
    model = load_pretrained(source).model
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, embed=8, init_logit_bias=-10.0))
    with pytest.raises(ValueError, match=r"embed \(16 -> 8\), init_logit_bias"):
        train(wide, tmp_path / "run", model=model, console=False)
    broken = eqx.tree_at(lambda clip: clip.vision.norm.bias, model, model.vision.norm.bias.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"NaN or infinity in vision\.norm\.bias"):
        train(config, tmp_path / "run", model=broken, console=False)
    with pytest.raises(ValueError, match="starts from weights, which `train` must be given"):
        train(dataclasses.replace(config, init_from=str(source)), tmp_path / "run", console=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("pattern", "refused"), [("vision.*", True), ("vision.norm.bias", False)])
def test_drawn_arrays_are_frozen_only_by_their_full_names(data, tmp_path, pattern, refused):
    optim = OptimConfig(learning_rate=1e-3, rates=(RateConfig(pattern, 0.0),))
    config = tuned(tiny_run(data), optim=optim, samples=16)
    if refused:
        with pytest.raises(ValueError, match="are drawn at random, not loaded"):
            train(config, tmp_path / "run", console=False)
    else:
        train(config, tmp_path / "run", console=False)


def test_a_locked_image_tower_from_a_timm_file_stays_as_it_is(data, tmp_path):
    safetensors.numpy.save_file(make_arrays(), tmp_path / "vit.safetensors")
    run = tiny_run(data)
    vision = VisionConfig(
        **{"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "hidden": 24},
        position="learned",
        patch_bias=True,
    )
    locked = (RateConfig("vision.projection.weight", 1.0), RateConfig("vision.*", 0.0))
    stage = dataclasses.replace(
        run.stages[1], image_size=16, optim=OptimConfig(learning_rate=1e-2, rates=locked), samples=96
    )
    config = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, vision=vision),
        stages=(stage,),
        init_from=str(tmp_path / "vit.safetensors"),
    )
    assert isinstance(open_start(config.init_from), ImageTower)
    first = starting_model(config)
    seen = []
    result = train(
        config,
        tmp_path / "run",
        model=lambda: starting_model(config),
        evaluators=(lambda clip: seen.append(clip) or {},),
        console=False,
    )
    for name, array in named_leaves(first).items():
        moved = bool(np.any(np.asarray(array) != named_leaves(result.model)[name]))
        assert moved == (not name.startswith("vision.") or name == "vision.projection.weight"), name
    # The projection is drawn, so a pattern over all of the tower would freeze noise.
    noise = dataclasses.replace(stage.optim, rates=(RateConfig("vision.*", 0.0),))
    with pytest.raises(ValueError, match=r"vision\.projection\.weight.* drawn at random"):
        starting_model(dataclasses.replace(config, stages=(dataclasses.replace(stage, optim=noise),)))


def test_a_recipe_of_another_size_names_every_field():
    small = tiny_run_model()
    text = TextConfig(context_length=8, vocab_size=30, width=32, depth=1, heads=2, hidden=32)
    with pytest.raises(ValueError) as caught:
        check_same_model(small, dataclasses.replace(small, text=text))
    assert "text.vocab_size: 20 in the weights, 30 in the recipe" in str(caught.value)
    assert "text.width: 16 in the weights, 32 in the recipe" in str(caught.value)
    other = dataclasses.replace(small.vision, pixel_mean=(0.5, 0.5, 0.5), activation="gelu", image_size=64)
    check_same_model(small, dataclasses.replace(small, vision=other))


def tiny_run_model():
    from pathlib import Path

    return tiny_run(Path()).model


def test_weights_that_are_none_are_one_message(source, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:2000])
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    for name, error, text in (
        ("nowhere", FileNotFoundError, "There are no weights at"),
        ("empty", FileNotFoundError, "no config.json"),
        ("cut.safetensors", ValueError, "cut.safetensors"),
        ("other.safetensors", ValueError, "no weights that a run can start from"),
    ):
        with pytest.raises(error, match=text):
            open_start(str(tmp_path / name))
    with pytest.raises(ValueError, match="is a config, not weights"):
        open_start(str(source / "config.json"))


def test_fine_tuning_by_one_command(data, source, tmp_path):
    arguments = ["--data.train", data / "train", "--run-dir", tmp_path / "run", "--epochs", "0.5", "--json"]
    code, out, err = run_clipa("train", "--init-from", source, *arguments)
    assert code == 0, err
    assert "with its vocabulary: 32 px, patches of 8 px, 8 text tokens" in err
    written = load_run_config(tmp_path / "run" / "config.json")
    assert (written.recipe, written.stages[0].samples, written.init_from) == ("fine-tune", 32, str(source))
    tokenizers = [load_pretrained(root).tokenizer.fingerprint for root in (source, tmp_path / "run")]
    assert tokenizers[0] == tokenizers[1]
    pretrained, result = load_pretrained(source).model, load_pretrained(tmp_path / "run").model
    assert 0 < np.abs(embedded(result) - embedded(pretrained)).max() < 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fine-tune"], "takes its model from weights: name them with --init-from"),
        (["--init-from", "SOURCE", "--scale", "1/4"], "sized by the data: use --epochs"),
        (["world-tiny", "--epochs", "2"], "--epochs is for fine-tune, lit, unmask"),
        (["world-tiny", "--init-from", "SOURCE"], "These weights are of another model than the recipe's"),
        (["--config", "IMPORTED"], "use --init-from"),
    ],
)
def test_arguments_that_disagree(data, source, tmp_path, arguments, message):
    imported = dataclasses.replace(load_run_config(source / "config.json"), recipe="imported")
    config = write_config(tmp_path / "config.json", imported)
    values = [{"SOURCE": source, "IMPORTED": config}.get(value, value) for value in arguments]
    code, _, err = run_clipa("train", *values, "--data.train", data / "train", "--run-dir", tmp_path / "run")
    assert code == 1
    assert message in err
    assert not (tmp_path / "run").exists()
