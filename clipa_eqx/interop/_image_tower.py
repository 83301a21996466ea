"""Image towers that were trained alone, by timm or MAE, as the start of a model."""

import dataclasses
import fnmatch
import math
from pathlib import Path
from typing import NamedTuple

from ..config import ImagePool, PositionTransfer, VisionConfig
from ..models import CLIP, transfer
from ._arrays import Arrays, open_arrays
from ._mapping import import_vision, leading_axes, patch_torch, Rule
from ._positions import with_formula_where_equal, with_position
from ._torch_rules import linear_rules, norm_rules


# Heads of a classifier, MAE's decoder and its mask token.
_LEFT_BEHIND = ("head.*", "decoder_*", "mask_token")

# Parts that change what all later weights mean: field of the config, and the array that shows that a file has it.
_PARTS = {"patch_bias": "patch_embed.proj.bias", "input_norm": "norm_pre.weight", "layer_scale": "blocks.0.ls1.gamma"}

# Heads of timm's models in which they are not 64 features wide: so400m, H, g, G.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


class ImageTowerStart(NamedTuple):
    """A model whose image tower comes from elsewhere."""

    model: CLIP
    kept: tuple[str, ...]
    """Parts of the image tower that the file lacks; they are as they were."""
    ignored: tuple[str, ...]
    """Arrays of the file that the model has no place for."""


def load_image_tower(
    path: Path | str, model: CLIP, *, image_positions: PositionTransfer = "resample"
) -> ImageTowerStart:
    """Put the weights of a timm or MAE vision transformer into the image tower of a model.

    For locked-image tuning (LiT, Zhai et al., arXiv 2111.07991) and warm starts. Both projects name their arrays alike.
    Blocks, patch embedding and last norm must be there; a class token and an attention pool are taken where both sides
    have one; the classifier and MAE's decoder stay behind. Positions move to the model's grid as `transfer` moves them:
    a table equal to MAE's formula counts as computed, any other as learned.

    What no file tells stays the model's choice: heads, activation, epsilon and pool. timm and MAE train with exact GELU
    and epsilon 1e-6; their classifiers by class token correspond to pool `first`, with `fc_norm` to `mean`, SigLIP's to
    `attention`.

    Args:
        path: `.safetensors`, or PyTorch's `.pth`, `.pt`, `.bin`; a checkpoint's `model` entry is found.
        model: the model that takes the weights.
        image_positions: remake or resample, as for `transfer`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or the tower in it is not the model's; the message names the part.
        ImportError: a PyTorch file, and PyTorch is not installed.
    """
    arrays = open_arrays(path)
    try:
        return _started(arrays, model, image_positions)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_image_tower(path: Path | str, *, heads: int | None = None) -> VisionConfig:
    """The tower that a timm or MAE file holds, as far as its arrays tell.

    Activation, epsilon and pixel statistics are those with which both projects train (exact GELU, 1e-6, ImageNet's).
    The pool is the class token where there is one, else the mean of patches; an attention pool and `fc_norm` show
    themselves.

    Args:
        path: as for `load_image_tower`.
        heads: attention heads; none: those of timm's model of that width, or one for 64 features.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no tower that is known here.
        ImportError: a PyTorch file, and PyTorch is not installed.
    """
    arrays = open_arrays(path)
    for name, axes in {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}.items():
        if name not in arrays or len(arrays.shape(name)) != axes:
            raise ValueError(f"{path} holds no image tower of timm or MAE: it has no {name} of {axes} axes.")
    width, _, patch_size, _ = arrays.shape("patch_embed.proj.weight")
    side = math.isqrt(arrays.shape("pos_embed")[1])
    heads = heads or _HEADS.get(width) or max(n for n in range(1, max(width // 64, 1) + 1) if width % n == 0)
    class_token = "cls_token" in arrays
    pool: ImagePool = "first" if class_token and "fc_norm.weight" not in arrays else "mean"
    if "attn_pool.latent" in arrays:
        pool = "attention"
    elif not class_token and "fc_norm.weight" not in arrays:
        pool = "norm_mean"
    return VisionConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        width=width,
        depth=sum(fnmatch.fnmatchcase(name, "blocks.*.norm1.weight") for name in arrays),
        heads=heads,
        hidden=arrays.shape("blocks.0.mlp.fc1.weight")[0],
        position="learned",
        class_token=class_token,
        pool=pool,
        input_norm="norm_pre.weight" in arrays,
        patch_bias="patch_embed.proj.bias" in arrays,
        activation="gelu",
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in arrays else 0.0,
        projection="none",
    )


def _started(arrays: Arrays, model: CLIP, image_positions: PositionTransfer) -> ImageTowerStart:
    wanted = model.config.vision
    config = _config_in_file(arrays, wanted)
    unused = [*_LEFT_BEHIND]
    unused += [] if wanted.class_token else ["cls_token"]
    unused += [] if config.pool == "attention" else ["attn_pool.*"]
    found = import_vision(_rules(arrays, config), arrays, config, config.width, ignored=unused)
    parts = ("class_token", "attention_pool", "projection")
    kept = [part for part in parts if getattr(found, part) is None and getattr(model.vision, part) is not None]
    tower = dataclasses.replace(
        found,
        **{part: getattr(model.vision, part) for part in kept},
        stack=dataclasses.replace(model.vision.stack, blocks=found.stack.blocks),
        config=dataclasses.replace(wanted, image_size=config.image_size, position=config.position),
    )
    if not wanted.class_token:
        tower = dataclasses.replace(tower, class_token=None)
    config = dataclasses.replace(model.config, vision=tower.config)
    start = with_formula_where_equal(dataclasses.replace(model, vision=tower, config=config))
    if start.config.vision.position == "frozen":
        start = with_position(start, "learned")
    return ImageTowerStart(
        transfer(start, model.config, image_positions=image_positions),
        kept=tuple(f"vision.{part}" for part in kept),
        ignored=tuple(name for name in arrays if any(fnmatch.fnmatchcase(name, pattern) for pattern in unused)),
    )


def _config_in_file(arrays: Arrays, wanted: VisionConfig) -> VisionConfig:
    """The tower in the file, which is the wanted one but for its positions, class token, pool and projection."""
    for field, name in _PARTS.items():
        if bool(getattr(wanted, field)) != (name in arrays):
            has = "has" if name in arrays else "has no"
            raise ValueError(
                f"the tower in the file {has} {name}, but the model's vision.{field}={getattr(wanted, field)!r}; "
                "give the model the form of the file."
            )
    if "pos_embed" not in arrays:
        raise ValueError("it has no pos_embed; only towers with one table of positions are supported.")
    rows = math.prod(arrays.shape("pos_embed")[:-1])
    side = math.isqrt(rows)
    if side * side not in (rows, rows - 1) or not side:
        raise ValueError(f"its pos_embed of {rows} rows is no table of a square image.")
    attends = wanted.pool == "attention" and "attn_pool.latent" in arrays
    return dataclasses.replace(
        wanted,
        image_size=side * wanted.patch_size,
        position="frozen",
        class_token="cls_token" in arrays,
        pool="attention" if attends else "mean",
        projection="none",
    )


def _rules(arrays: Arrays, config: VisionConfig) -> list[Rule]:
    ours, theirs, pool = "vision.stack.blocks", "blocks.{i}", "vision.attention_pool"
    class_row = math.prod(arrays.shape("pos_embed")[:-1]) > config.patches
    rules = [
        Rule("vision.patch.weight", "patch_embed.proj.weight", patch_torch(config.patch_size)),
        Rule("vision.position", "pos_embed", leading_axes(1), class_row=class_row),
        *norm_rules(f"{ours}.attention_norm", f"{theirs}.norm1"),
        *linear_rules(f"{ours}.attention.qkv", f"{theirs}.attn.qkv"),
        *linear_rules(f"{ours}.attention.out", f"{theirs}.attn.proj"),
        *norm_rules(f"{ours}.mlp_norm", f"{theirs}.norm2"),
        *linear_rules(f"{ours}.mlp.widen", f"{theirs}.mlp.fc1"),
        *linear_rules(f"{ours}.mlp.narrow", f"{theirs}.mlp.fc2"),
        # timm calls it so where it follows the mean.
        *norm_rules("vision.norm", "fc_norm" if "fc_norm.weight" in arrays else "norm"),
    ]
    if config.patch_bias:
        rules.append(Rule("vision.patch.bias", "patch_embed.proj.bias"))
    if config.class_token:
        rules.append(Rule("vision.class_token", "cls_token", leading_axes(2)))
    if config.input_norm:
        rules += norm_rules("vision.input_norm", "norm_pre")
    if config.layer_scale:
        rules.append(Rule(f"{ours}.attention_scale", f"{theirs}.ls1.gamma"))
        rules.append(Rule(f"{ours}.mlp_scale", f"{theirs}.ls2.gamma"))
    if config.pool == "attention":
        rules += [
            Rule(f"{pool}.probe", "attn_pool.latent", leading_axes(2)),
            *linear_rules(f"{pool}.query", "attn_pool.q"),
            *linear_rules(f"{pool}.key_value", "attn_pool.kv"),
            *linear_rules(f"{pool}.out", "attn_pool.proj"),
            *norm_rules(f"{pool}.norm", "attn_pool.norm"),
            *linear_rules(f"{pool}.mlp.widen", "attn_pool.mlp.fc1"),
            *linear_rules(f"{pool}.mlp.narrow", "attn_pool.mlp.fc2"),
        ]
    return rules
