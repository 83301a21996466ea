"""What must hold before a run starts, found before anything is compiled."""

import equinox as eqx
import jax

from ..config import check_run, RunConfig, stage_model
from ..data import load_tokenizer, open_pairs, PairSource, Tokenizer
from ..models import make_clip
from ._layout import gradient_specs
from ._optim import check_rates
from ._profile import check_profile
from ._run_dir import RunDirectory


def open_run(
    config: RunConfig, paths: RunDirectory, profile_steps: range | None
) -> tuple[RunConfig, Tokenizer, PairSource, list[str]]:
    """Open what a run reads, and make sure that all of it fits together here.

    Returns:
        The config as `RunDirectory.settle` has it, tokenizer, pairs, and what changed since the run was started, as
        `RunDirectory.check` has it.

    Raises:
        ValueError: the config cannot run here, does not fit the vocabulary, has not the steps to profile, or the
            directory holds another run.
        FileNotFoundError: data or vocabulary are missing.
        ImportError: the packages of the run's decoder are not installed here.
    """
    config = paths.settle(config)
    check_run(config, num_devices=jax.device_count(), num_processes=jax.process_count())
    check_layout(config, jax.device_count())
    check_profile(config, profile_steps)
    tokenizer = load_tokenizer(config.data.tokenizer)
    check_vocabulary(config, tokenizer)
    pairs = open_pairs(config.data)
    return config, tokenizer, pairs, paths.check(config, fingerprints(pairs, tokenizer))


def fingerprints(pairs: PairSource, tokenizer: Tokenizer) -> dict[str, str]:
    """Of what a run reads, wherever it lies."""
    return {"data": pairs.fingerprint, "vocabulary": tokenizer.fingerprint}


def check_layout(config: RunConfig, num_devices: int) -> None:
    """Check what depends on the model's arrays: whether they split over the devices, and which ones `rates` name.

    Raises:
        ValueError: an array that does not split, or a pattern that names none.
    """
    for stage in config.stages:
        shapes = eqx.filter_eval_shape(make_clip, stage_model(config, stage), key=jax.random.key(0))
        check_rates(stage.optim, shapes)
        gradient_specs(shapes, config.shard, num_devices)


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
