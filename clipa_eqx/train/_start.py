"""What must hold before a run starts, found before anything is compiled."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config import check_run, RunConfig, stage_model
from ..data import load_tokenizer, open_pairs, PairSource, Tokenizer
from ..models import CLIP, make_clip, named_leaves, transfer, weights_digest
from ._layout import gradient_specs
from ._optim import check_frozen, check_rates
from ._optimizers import scale_by
from ._parts import origin, Parts
from ._profile import check_profile
from ._run_dir import RunDirectory


GivenModel = CLIP | Callable[[], CLIP]
"""A model, or a function that loads one whose arrays nobody else needs."""


@dataclass(frozen=True)
class Given:
    """What `train` is given as values, in place of what the config names."""

    model: GivenModel | None = None
    pairs: PairSource | None = None
    tokenizer: Tokenizer | None = None
    parts: Parts = field(default_factory=Parts)

    def names(self) -> tuple[str, ...]:
        """Each value but the model, of which the digest is recorded, with its origin or its fingerprint."""
        origins = {} if self.pairs is None else {"pairs": origin(self.pairs)}
        if self.tokenizer is not None:
            # What it does to texts, whatever read it.
            origins["tokenizer"] = self.tokenizer.fingerprint
        return tuple(f"{name}={where}" for name, where in (origins | self.parts.given()).items())


class Opened(NamedTuple):
    """A run that can start."""

    config: RunConfig
    """As `RunDirectory.settle` has it, with what was given."""
    tokenizer: Tokenizer
    pairs: PairSource
    model: CLIP | None
    """The weights to start from; shapes where the first stage goes on from a checkpoint; None: to be drawn."""
    changes: list[str]
    """What changed since the run was started, as `RunDirectory.check` has it."""


def open_run(config: RunConfig, paths: RunDirectory, given: Given, profile_steps: range | None) -> Opened:
    """Open what a run reads, and make sure that all of it fits together here.

    Raises:
        ValueError: the config cannot run here, does not fit the vocabulary or the weights, has not the steps to
            profile, or the directory holds another run, or one that was given other values.
        FileNotFoundError: data or vocabulary are missing.
        ImportError: the packages of the run's decoder are not installed here.
    """
    config = _with_given(paths.settle(config), given, begun=paths.given())
    check_run(
        config,
        num_devices=jax.device_count(),
        num_processes=jax.process_count(),
        starts_from_weights=given.model is not None,
    )
    check_layout(config, jax.device_count())
    check_profile(config, profile_steps)
    tokenizer = given.tokenizer or load_tokenizer(config.data.tokenizer)
    check_vocabulary(config, tokenizer)
    pairs = open_pairs(config.data) if given.pairs is None else given.pairs
    model, digest = _first_model(config, paths, given.model)
    config = _with_stored_positions(dataclasses.replace(config, init_digest=digest), model)
    return Opened(config, tokenizer, pairs, model, paths.check(config, fingerprints(pairs, tokenizer)))


def _with_given(config: RunConfig, given: Given, begun: tuple[str, ...]) -> RunConfig:
    """The config with the names of what was given.

    Args:
        config: the run.
        given: what it is given now.
        begun: what it was given when it began.

    Raises:
        ValueError: something that the config says was given is missing, or data are both given and named.
    """
    names = given.names()
    missing = sorted({*config.given, *begun} - set(names))
    if missing:
        raise ValueError(
            f"This run was started with values that `train` must be given again: {', '.join(missing)}. "
            f"Given now: {', '.join(names) or 'nothing'}."
        )
    for name, value, field_name in (("pairs", given.pairs, "train"), ("tokenizer", given.tokenizer, "tokenizer")):
        if value is not None and getattr(config.data, field_name):
            raise ValueError(
                f"`train` is given {name}= and config.data.{field_name}={getattr(config.data, field_name)!r}: "
                "leave one of the two out."
            )
    if given.parts.keep_image is not None and not any(stage.keep_patches for stage in config.stages):
        raise ValueError(
            "keep_image is given, but no stage keeps a part of its patches: set keep_patches, and an image_reduction "
            "that keep_image stands in for."
        )
    return dataclasses.replace(config, given=names)


def _first_model(config: RunConfig, paths: RunDirectory, given: GivenModel | None) -> tuple[CLIP | None, str]:
    """What the first stage starts from, and the digest of its weights; they are not read where a checkpoint is there.

    Raises:
        ValueError: the weights are not the model's, are not finite, or are others than the run began with.
    """
    begun = config.init_digest or paths.init_digest()
    if paths.has_checkpoint() and not isinstance(given, CLIP):
        shapes = eqx.filter_eval_shape(make_clip, stage_model(config, config.stages[0]), key=jax.random.key(0))
        return shapes, begun
    if given is None:
        if config.init_from or begun:
            raise ValueError(
                "This run starts from weights, which `train` must be given: model=lambda: starting_model(config), of "
                f"clipa_eqx.init_from, for init_from={config.init_from!r}; `clipa train` does that by itself."
            )
        drawn = eqx.filter_eval_shape(make_clip, config.model, key=jax.random.key(0))
        for stage in config.stages:
            check_frozen(stage.optim, drawn)
        return None, ""
    # A copy of a caller's own model: the first step uses its weights up.
    model = jax.tree.map(jnp.copy, given) if isinstance(given, CLIP) else given()
    check_weights(model, config)
    digest = weights_digest(model)
    if begun not in ("", digest) or (not begun and paths.has_checkpoint()):
        raise ValueError(
            f"The weights to start from are not those that this run began with (sha256 {digest[:16]}, then "
            f"{begun[:16] or 'drawn ones'}): put them back, or choose another run directory."
        )
    return model, digest


def _with_stored_positions(config: RunConfig, model: CLIP | None) -> RunConfig:
    """The config that says so where the weights bring a table of positions in place of the formula that it names."""
    if model is None:
        return config
    move = functools.partial(
        transfer,
        config=stage_model(config, config.stages[0]),
        image_positions=config.stages[0].position_transfer,
    )
    position = eqx.filter_eval_shape(move, model).config.vision.position
    vision = dataclasses.replace(config.model.vision, position=position)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))


def check_weights(model: CLIP, config: RunConfig) -> None:
    """Make sure that a run can start from these weights.

    Raises:
        ValueError: the model is another than the config's, with every field named; or numbers are not finite.
    """
    for stage in config.stages[:1]:
        try:
            eqx.filter_eval_shape(
                functools.partial(transfer, config=stage_model(config, stage), image_positions=stage.position_transfer),
                model,
            )
        except ValueError as error:
            raise ValueError(f"The weights to start from do not fit the run's model. {error}") from error
    wrong = [name for name, leaf in named_leaves(model).items() if not bool(jnp.all(jnp.isfinite(leaf)))]
    if wrong:
        raise ValueError(f"The weights to start from hold NaN or infinity in {', '.join(wrong)}: load another file.")


def fingerprints(pairs: PairSource, tokenizer: Tokenizer) -> dict[str, str]:
    """Of what a run reads, wherever it lies."""
    return {"data": pairs.fingerprint, "vocabulary": tokenizer.fingerprint}


def check_layout(config: RunConfig, num_devices: int) -> None:
    """Check what depends on the model's arrays: whether they split over the devices, and which ones `rates` name; and
    that the optimisers are there.

    Raises:
        ValueError: an array that does not split, a pattern that names none, or an unknown optimiser.
    """
    for stage in config.stages:
        shapes = eqx.filter_eval_shape(make_clip, stage_model(config, stage), key=jax.random.key(0))
        check_rates(stage.optim, shapes)
        scale_by(stage.optim)
        gradient_specs(shapes, config.shard, num_devices)


def check_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Make sure that the model's embedding table and special ids are those of the vocabulary.

    Raises:
        ValueError: the table is too small, or padding or end ids differ.
    """
    text, where = config.model.text, config.data.tokenizer or "that came with the run"
    faults = []
    if tokenizer.vocab_size > text.vocab_size:
        faults.append(
            f"has {tokenizer.vocab_size} entries, the model's table text.vocab_size={text.vocab_size} rows; use a "
            "model with at least as many rows"
        )
    if tokenizer.pad_id != text.pad_id:
        faults.append(f"pads with id {tokenizer.pad_id}, the model expects text.pad_id={text.pad_id}")
    if text.end_id >= 0 and tokenizer.end_id != text.end_id:
        faults.append(f"ends texts with id {tokenizer.end_id}, the model expects text.end_id={text.end_id}")
    if faults:
        raise ValueError(f"The vocabulary {where} " + "; it ".join(faults) + ".")
