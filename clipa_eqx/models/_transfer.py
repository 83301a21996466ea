"""Moving weights to another image size or context length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_choice
from ..config import CLIPConfig, PositionTransfer, TextConfig, VisionConfig, VisionPosition
from ..nn import wide_dtype
from ._clip import CLIP
from ._text import TextTower
from ._vision import computed_positions, VisionTower


def transfer(model: CLIP, config: CLIPConfig, *, image_positions: PositionTransfer = "remake") -> CLIP:
    """The same weights at another image size or context length; only position tables change.

    Originals of "the same" recipe differ here, so each case is a choice:

    - Computed image positions, `remake`: the new grid counts patches from its own corner, so a larger image meets
      positions that no earlier stage saw (CLIPA-JAX).
    - Computed image positions, `resample`: the table of the earlier grid, stretched over the new one, is stored from
      here on (CLIPA-torch): frozen, or trained where `config` says `learned`. The model that comes back says
      `frozen` in its own config even where `config` names the formula.
    - Stored image positions are stretched in either case. With `remake`, a frozen table gives way to the formula that
      `config` names.
    - A learned text table is stretched linearly, end to end (the branch of CLIPA that trained 8 -> 32 tokens; its main
      branch cannot); a computed one is computed anew.

    Images are resampled by Keys' bicubic kernel, with antialiasing where the grid shrinks, as
    torch's `interpolate(mode="bicubic", antialias=True)` in open_clip; text by the same rule with a linear kernel,
    half-pixel centres.

    Args:
        model: the model to move.
        config: what it becomes; it may differ in `vision.image_size`, `vision.position` and `text.context_length`, and
            in what no weight holds: pixel statistics, stochastic depth, and the values that scales and biases begin at.
        image_positions: remake or resample, as above.

    Returns:
        A model with its own config; every array but the tables is the one of `model`.

    Raises:
        ValueError: `config` differs in other fields, or has no place for a learned table.
    """
    check_choice("image_positions", image_positions, PositionTransfer)
    _check_same_weights(model.config, config)
    vision = _moved_vision(model.vision, config.vision, image_positions)
    text = _moved_text(model.text, config.text)
    config = dataclasses.replace(config, vision=vision.config, text=text.config)
    return dataclasses.replace(model, vision=vision, text=text, config=config)


# Fields that decide neither an array nor what is computed from it, but for positions, pixels and chance.
_FREE = (
    *("vision.image_size", "vision.position", "text.context_length"),
    *("vision.pixel_mean", "vision.pixel_std", "vision.drop_path", "text.drop_path", "init_logit_scale"),
)
# Initial values of arrays that only exist where one is given.
_INITIAL = ("init_logit_bias", "vision.layer_scale", "text.layer_scale")


def _check_same_weights(old: CLIPConfig, new: CLIPConfig) -> None:
    before, after = _flat(old), _flat(new)
    alike = lambda name: all(bool(values[name]) for values in (before, after)) and name in _INITIAL
    changed = [name for name in before if before[name] != after[name] and name not in _FREE and not alike(name)]
    if changed:
        listed = ", ".join(f"{name} ({before[name]} -> {after[name]})" for name in changed)
        raise ValueError(
            f"Weights move only between image sizes and context lengths, but the configs differ in {listed}; "
            "keep those fields as the model has them."
        )


def _flat(config: CLIPConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        fields |= (
            {f"{name}.{inner}": entry for inner, entry in value.items()} if isinstance(value, dict) else {name: value}
        )
    return fields


def _moved_vision(tower: VisionTower, config: VisionConfig, how: PositionTransfer) -> VisionTower:
    kind = _stored_kind(tower.config, config, how)
    table = None
    if kind in ("learned", "frozen"):
        table = tower.position
        grid = tower.config.grid
        if table is None:
            grid = config.grid if how == "remake" else grid
            table = jnp.asarray(computed_positions(tower.config, grid), tower.patch.weight.dtype)
        table = _resampled(table, grid, config.grid)
    stack = dataclasses.replace(tower.stack, drop_path=config.drop_path)
    return dataclasses.replace(tower, stack=stack, position=table, config=dataclasses.replace(config, position=kind))


def _stored_kind(old: VisionConfig, new: VisionConfig, how: PositionTransfer) -> VisionPosition:
    """What becomes of `vision.position`."""
    if new.position in ("learned", "frozen"):
        return new.position
    if old.position == "learned":
        raise ValueError(
            f"vision.position={new.position!r} would discard the learned image positions; keep position='learned', or "
            "set 'frozen' to store them untrained."
        )
    if old.position == "frozen":
        return "frozen" if how == "resample" else new.position
    if old.position != new.position:
        raise ValueError(
            f"The model was trained with vision.position={old.position!r}, whose table differs from that of "
            f"{new.position!r}; keep {old.position!r}."
        )
    return "frozen" if how == "resample" and old.grid != new.grid else new.position


def _resampled(
    table: Float[Array, "patches dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "new_patches dim"]:
    if old == new:
        return table
    width = table.shape[1]
    grid = table.reshape(*old, width).astype(wide_dtype(table.dtype))
    return jax.image.resize(grid, (*new, width), "cubic").reshape(-1, width).astype(table.dtype)


def _moved_text(tower: TextTower, config: TextConfig) -> TextTower:
    table = tower.position
    if table is not None and config.context_length != table.shape[0]:
        wide = table.astype(wide_dtype(table.dtype))
        table = jax.image.resize(wide, (config.context_length, table.shape[1]), "linear").astype(table.dtype)
    stack = dataclasses.replace(tower.stack, drop_path=config.drop_path)
    return dataclasses.replace(tower, stack=stack, position=table, config=config)
