"""Checkpoints of big_vision: pairs of towers as SigLIP and LiT train them, and image towers alone."""

from pathlib import Path
from typing import Any, NamedTuple

from ..config import CLIPConfig, ImagePool, TextConfig, VisionConfig
from ..models import CLIP, VisionTower
from ._arrays import Arrays, Renamed
from ._flax import (
    attention_rules,
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
from ._mapping import import_arrays, import_vision, leading_axes, patch_flax, Rule, split_axis


_HALF = (0.5, 0.5, 0.5)
"""Mean and deviation that bring pixels to [-1, 1], as all of these models saw them."""


def load_big_vision(path: Path | str, *, image_size: int | None = None) -> CLIP:
    """Load a pair of towers: a ViT of any of big_vision's pools, and its text transformer pooled at the last slot.

    Sizes, heads and parts are read off the arrays: attention pooling (`MAPHead_0`), a class token, else the mean of
    normalised patches; the bias of the sigmoid loss (`b`); blocks that are stacked for a scan. GELU has its tanh form
    and epsilon is 1e-6, as everywhere in that project. A model with `b` pads texts with id 1, as SigLIP's vocabulary.
    Other text towers, BERT among them, are not read.

    Args:
        path: the `.npz` file.
        image_size: side in pixels that the model is for, where image positions are computed; none: 224. A stored table
            decides it otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is no such pair; the message names what is missing or unexpected.
    """
    arrays = read_parameters(path)
    try:
        image = _read_image(arrays, "img/", image_size)
        text = read_encoder(arrays, "txt/Encoder_0")
        vocab_size, _ = shape_of(arrays, "txt/Embed_0/embedding", 2)
        _, context_length, _ = shape_of(arrays, "txt/pos_embedding", 3)
        sigmoid = "b" in arrays
        config = CLIPConfig(
            embed=image.embed,
            vision=image.config,
            text=TextConfig(
                **text.sizes,
                vocab_size=vocab_size,
                context_length=context_length,
                projection=_projection(arrays, "txt/head"),
                pad_id=1 if sigmoid else 0,
            ),
            init_logit_bias=-10.0 if sigmoid else None,
        )
        rules = [
            *_image_rules(image, "img/"),
            Rule("text.embedding", "txt/Embed_0/embedding"),
            Rule("text.position", "txt/pos_embedding", leading_axes(1)),
            *block_rules("text", text),
            *norm_rules("text.norm", "txt/Encoder_0/encoder_norm"),
            *_projection_rules("text", config.text, "txt/head"),
            Rule("logit_scale", "t", leading_axes(1)),
        ]
        if sigmoid:
            rules.append(Rule("logit_bias", "b", leading_axes(1)))
        return import_arrays(rules, arrays, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_big_vision_image(path: Path | str, *, image_size: int | None = None) -> VisionTower:
    """Load an image tower: the one of a pair, or a ViT trained alone, such as AugReg's.

    A ViT trained alone keeps its body and its pool; the layers of its classifier (`head`, `pre_logits`) are left out.
    The class token's own row in a position table is added to the class token.

    Args:
        path: the `.npz` file.
        image_size: as in `load_big_vision`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no such tower.
    """
    arrays = read_parameters(path)
    try:
        if any(name.startswith("img/") for name in arrays):
            kept = [name for name in arrays if name.startswith("img/")]
        else:
            kept = [name for name in arrays if not name.startswith(("head/", "pre_logits/"))]
        arrays = Renamed(arrays, {name.removeprefix("img/"): name for name in kept})
        image = _read_image(arrays, "", image_size)
        return import_vision(_image_rules(image, ""), arrays, image.config, image.embed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Image(NamedTuple):
    config: VisionConfig
    embed: int
    encoder: Encoder
    class_row: bool


def _read_image(arrays: Arrays, root: str, image_size: int | None) -> _Image:
    encoder = read_encoder(arrays, f"{root}Transformer")
    patch_size = read_patch_size(arrays, f"{root}embedding/kernel")
    class_token = f"{root}cls" in arrays
    pool: ImagePool = "first" if class_token else "norm_mean"
    if f"{root}MAPHead_0/probe" in arrays:
        pool = "attention"
    fields: dict[str, Any] = {"position": "sincos2d", "image_size": 224 if image_size is None else image_size}
    class_row = False
    if f"{root}pos_embedding" in arrays:
        side, class_row = read_grid(arrays, f"{root}pos_embedding")
        if image_size not in (None, side * patch_size):
            raise ValueError(
                f"image_size={image_size}, but its position table is for {side * patch_size} px; leave it out, and "
                "move the model with `transfer`."
            )
        fields = {"position": "learned", "image_size": side * patch_size}
    config = VisionConfig(
        **encoder.sizes,
        **fields,
        patch_size=patch_size,
        class_token=class_token,
        pool=pool,
        patch_bias=True,
        projection=_projection(arrays, f"{root}head"),
        pixel_mean=_HALF,
        pixel_std=_HALF,
    )
    embed = encoder.width
    if config.projection != "none":
        _, embed = shape_of(arrays, f"{root}head/kernel", 2)
    return _Image(config, embed, encoder, class_row)


def _projection(arrays: Arrays, name: str) -> Any:
    if f"{name}/kernel" not in arrays:
        return "none"
    return "linear_bias" if f"{name}/bias" in arrays else "linear"


def _image_rules(image: _Image, root: str) -> list[Rule]:
    config = image.config
    rules = [
        Rule("vision.patch.weight", f"{root}embedding/kernel", patch_flax(config.patch_size)),
        Rule("vision.patch.bias", f"{root}embedding/bias"),
        *block_rules("vision", image.encoder),
        *norm_rules("vision.norm", f"{root}Transformer/encoder_norm"),
        *_projection_rules("vision", config, f"{root}head"),
    ]
    if config.class_token:
        rules.append(Rule("vision.class_token", f"{root}cls", leading_axes(2)))
    if config.position == "learned":
        rules.append(Rule("vision.position", f"{root}pos_embedding", leading_axes(1), class_row=image.class_row))
    if config.pool == "attention":
        rules += _pool_rules("vision.attention_pool", f"{root}MAPHead_0/", config.heads)
    return rules


def _pool_rules(ours: str, theirs: str, heads: int) -> list[Rule]:
    split, out = split_axis(-1, heads), split_axis(-2, heads)
    query = f"{theirs}MultiHeadDotProductAttention_0/query"
    return [
        Rule(f"{ours}.probe", f"{theirs}probe", leading_axes(2)),
        Rule(f"{ours}.query.weight", f"{query}/kernel", split),
        Rule(f"{ours}.query.bias", f"{query}/bias", split),
        *attention_rules(ours, "key_value", ("key", "value"), theirs, split, out),
        *norm_rules(f"{ours}.norm", f"{theirs}LayerNorm_0"),
        *linear_rules(f"{ours}.mlp.widen", f"{theirs}MlpBlock_0/Dense_0"),
        *linear_rules(f"{ours}.mlp.narrow", f"{theirs}MlpBlock_0/Dense_1"),
    ]


def _projection_rules(tower: str, config: VisionConfig | TextConfig, name: str) -> list[Rule]:
    if config.projection == "none":
        return []
    return linear_rules(f"{tower}.projection", name, bias=config.projection == "linear_bias")
