"""CLIPA-JAX's own checkpoints, both ways."""

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .._checks import check_choice
from ..config import CLIPConfig, TextConfig, VisionConfig
from ..models import CLIP
from ._arrays import Arrays
from ._flax import (
    block_rules,
    Encoder,
    linear_rules,
    norm_rules,
    read_encoder,
    read_grid,
    read_parameters,
    read_patch_size,
    shape_of,
)
from ._mapping import export_arrays, import_arrays, leading_axes, patch_flax, Rule


_TABLE = "img/pos_embedding"


def load_clipa_jax(
    path: Path | str,
    *,
    image_pool: Literal["mean", "first"] = "mean",
    image_size: int | None = None,
    heads: tuple[int, int] | None = None,
) -> CLIP:
    """Load a checkpoint that CLIPA-JAX wrote: one npz of a whole run or of the weights alone, or a folder of t5x.

    Sizes are read off the arrays. What arrays do not tell is as CLIPA trained: tanh-GELU, epsilon 1e-6, texts pooled at
    their last slot without any mask, pixels normalised by ImageNet's statistics. Kernels of its branch t5x
    join the heads, whose number then follows from the width.

    A class token's own row of a learned image table is added to the class token.

    Args:
        path: the `.npz` file, or the folder `checkpoint_N` of a run on branch t5x.
        image_pool: mean for `gap` (CLIPA v2), first for `tok` (v1); arrays do not tell.
        image_size: side in pixels that the model is for, where image positions are computed; none: 224. A stored table
            decides it otherwise.
        heads: heads of the image and the text tower, for files of branch t5x in no known size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is not a CLIPA model; the message names what is missing or unexpected.
    """
    check_choice("image_pool", image_pool, Literal["mean", "first"])
    arrays = read_parameters(path)
    try:
        towers = _Towers(
            read_encoder(arrays, "img/Transformer", tower="image", heads=heads and heads[0]),
            read_encoder(arrays, "txt/Transformer", tower="text", heads=heads and heads[1]),
        )
        vocab_size, _ = shape_of(arrays, "txt/Embed_0/embedding", 2)
        _, embed = shape_of(arrays, "img/head/kernel", 2)
        config = CLIPConfig(
            embed=embed,
            vision=VisionConfig(pool=image_pool, **towers.image.sizes, **_image_fields(arrays, image_size)),
            text=TextConfig(vocab_size=vocab_size, **towers.text.sizes, **_text_positions(arrays)),
        )
        return import_arrays(_rules(config, towers), arrays, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def export_clipa_jax(model: CLIP, path: Path | str) -> None:
    """Write a model as the weights of a CLIPA-JAX checkpoint, which its `masked_init` and `model.load` read.

    Names, shapes and order are those of CLIPA's main branch, so equal weights are equal files. A frozen image table is
    written as a learned one, with a class row of zeros. No optimiser state is written.

    Args:
        model: the model.
        path: the `.npz` file to write; it appears only when it is whole.

    Raises:
        ValueError: CLIPA-JAX cannot express the model; the message names each field in the way.
    """
    _check_expressible(model.config)
    vision, text = (tower.config for tower in (model.vision, model.text))
    towers = _Towers(
        *(
            Encoder(f"{name}/Transformer/encoderblock_{{i}}/", c.width, c.depth, c.hidden, c.heads, joined_heads=False)
            for name, c in (("img", vision), ("txt", text))
        )
    )
    arrays = export_arrays(_rules(model.config, towers), model)
    # The order in which JAX walks nested dictionaries.
    ordered = {f"params/{name}": arrays[name] for name in sorted(arrays, key=lambda name: name.split("/"))}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w") as file:
        for name, array in ordered.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    partial.replace(path)


class _Towers(NamedTuple):
    image: Encoder
    text: Encoder


def _image_fields(arrays: Arrays, image_size: int | None) -> dict[str, Any]:
    patch_size = read_patch_size(arrays, "img/embedding/kernel")
    if _TABLE not in arrays:
        return {"patch_size": patch_size, "image_size": 224 if image_size is None else image_size}
    side, class_row = read_grid(arrays, _TABLE)
    if not class_row:
        raise ValueError(f"{_TABLE} has no row for the class token, which CLIPA's always have.")
    if image_size not in (None, side * patch_size):
        raise ValueError(
            f"image_size={image_size}, but its position table is for {side * patch_size} px; leave it out, and "
            "move the model with `transfer`."
        )
    return {"patch_size": patch_size, "image_size": side * patch_size, "position": "learned"}


def _text_positions(arrays: Arrays) -> dict[str, Any]:
    if "txt/pos_embedding" not in arrays:
        return {"position": "sincos1d"}
    return {"context_length": shape_of(arrays, "txt/pos_embedding", 3)[1]}


def _rules(config: CLIPConfig, towers: _Towers) -> list[Rule]:
    rules = [
        Rule("vision.patch.weight", "img/embedding/kernel", patch_flax(config.vision.patch_size)),
        Rule("vision.class_token", "img/cls", leading_axes(2)),
        *block_rules("vision", towers.image),
        *norm_rules("vision.norm", "img/encoder_norm"),
        *linear_rules("vision.projection", "img/head", bias=False),
        Rule("text.embedding", "txt/Embed_0/embedding"),
        *block_rules("text", towers.text),
        *norm_rules("text.norm", "txt/encoder_norm"),
        *linear_rules("text.projection", "txt/head", bias=False),
        Rule("logit_scale", "t", leading_axes(1)),
    ]
    if config.vision.position in ("learned", "frozen"):
        rules.append(Rule("vision.position", _TABLE, leading_axes(1), class_row=True))
    if config.text.position == "learned":
        rules.append(Rule("text.position", "txt/pos_embedding", leading_axes(1)))
    return rules


_FORM: dict[str, tuple[Any, ...]] = {
    "vision.position": ("sincos2d", "learned", "frozen"),
    "vision.class_token": (True,),
    "vision.pool": ("mean", "first"),
    "vision.input_norm": (False,),
    "vision.patch_bias": (False,),
    "text.pool": ("last",),
    "text.causal": (False,),
    "text.mask_padding": (False,),
    **{
        f"{tower}.{field}": wanted
        for tower in ("vision", "text")
        for field, wanted in (
            ("activation", ("gelu_tanh",)),
            ("norm_eps", (1e-6,)),
            ("layer_scale", (0.0,)),
            ("projection", ("linear",)),
        )
    },
}
"""What CLIPA-JAX computes, by field of the config."""


def _check_expressible(config: CLIPConfig) -> None:
    faults = []
    for place, wanted in _FORM.items():
        tower, field = place.split(".")
        value = getattr(getattr(config, tower), field)
        if value not in wanted:
            faults.append(f"{place}={value!r}, where it has {' or '.join(map(repr, wanted))}")
    if config.init_logit_bias is not None:
        faults.append("init_logit_bias, which its softmax loss has not")
    if faults:
        raise ValueError(f"CLIPA-JAX cannot express this model: {'; '.join(faults)}.")
