"""open_clip's model configs, read into ours and written from ours. What either side lacks is refused by name."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, cast, Literal

from .._checks import check_choice
from ..config import Activation, CLIPConfig, ImagePool, Projection, TextConfig, VisionConfig, VisionPosition
from ._arrays import Arrays


Numerics = Literal["open_clip", "as_trained"]
"""Which model the same weights are. open_clip: as open_clip computes it from its config. as_trained: tanh GELU, epsilon
1e-6 and CLIPA's own tokens, for weights that come from JAX (CLIPA, SigLIP)."""

TIMM_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
"""timm's plain SigLIP towers; the groups are size, patch and image side."""

# timm names the size of a tower and open_clip's config leaves it at that. Heads cannot be read off the arrays.
_TIMM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
# Width, depth and hidden of the sizes, to find the name of a tower that is to be exported.
_TIMM_SIZES = {
    "base": (768, 12, 3072),
    "large": (1024, 24, 4096),
    "so400m": (1152, 27, 4304),
    "giantopt": (1536, 40, 6144),
}
_TIMM_SIDES = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}

# Fields that do not change what the model computes outside training, or that only the tokenizer needs.
_NO_MATTER = {
    "vision_cfg": {
        "patch_dropout",
        "output_tokens",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "timm_model_pretrained",
    }
    | {"timm_drop", "timm_drop_path", "n_queries"},
    "text_cfg": {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "output_tokens", "final_ln_after_pool"}
    | {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "bert_tokenizer", "vocab_path", "text_mask"},
    "model_cfg": {"custom_text", "nonscalar_logit_scale"},
    "act_kwargs": set(),
    "norm_kwargs": set(),
}


_LARGEST = 10**7
"""Larger than any size in an open_clip config; shapes made of several such numbers stay within 64 bits."""


class _Fields:
    """A JSON object that is read field by field; what is left over is refused."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} of an open_clip config must be a JSON object, got {values!r}.")
        self._values, self._where = dict(values), where

    def take(self, name: str, default: Any, kind: type[Any] | tuple[type[Any], ...]) -> Any:
        """The value of a field, of the type needed; null counts as left out."""
        value = self._values.pop(name, None)
        if value is None:
            return default
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, int) and abs(value) > _LARGEST):
            raise ValueError(f"{self._where}.{name} of an open_clip config cannot be {value!r}.")
        return value

    def done(self) -> None:
        """Refuse what has not been taken and is switched on."""
        left = {name: value for name, value in self._values.items() if name not in _NO_MATTER[self._where]}
        on = [f"{name}={value!r}" for name, value in left.items() if value not in (None, False, "default")]
        if on:
            raise ValueError(f"Not supported: an open_clip model with {self._where} {', '.join(on)}.")


def read_model_cfg(values: Any, arrays: Arrays, numerics: Numerics) -> CLIPConfig:
    """Our config for open_clip's `model_cfg`.

    The older spelling of CLIPA's PyTorch code is read too.

    Args:
        values: the JSON object.
        arrays: the weights, whose shapes hold the size of a tower that timm names.
        numerics: which model the weights are to be.

    Raises:
        ValueError: a field is malformed, or describes what this package does not have.
    """
    check_choice("numerics", numerics, Numerics)
    fields = _Fields(values, "model_cfg")
    quick = fields.take("quick_gelu", False, bool)
    embed = fields.take("embed_dim", None, int)
    if embed is None:
        raise ValueError("An open_clip config needs embed_dim.")
    vision = _read_vision(fields.take("vision_cfg", {}, dict), quick, arrays)
    text = _read_text(fields.take("text_cfg", {}, dict), quick)
    scale = {"init_logit_scale": fields.take("init_logit_scale", None, (int, float))}
    bias = fields.take("init_logit_bias", None, (int, float))
    fields.done()
    if numerics == "as_trained" and not vision.input_norm and not text.causal:
        trained: dict[str, Any] = {"activation": "gelu_tanh", "norm_eps": 1e-6}
        vision, text = dataclasses.replace(vision, **trained), dataclasses.replace(text, **trained)
    return CLIPConfig(
        embed=embed,
        vision=vision,
        text=text,
        init_logit_bias=None if bias is None else float(bias),
        **{name: float(value) for name, value in scale.items() if value is not None},
    )


def _read_vision(values: Any, quick: bool, arrays: Arrays) -> VisionConfig:
    fields = _Fields(values, "vision_cfg")
    size = fields.take("image_size", 224, (int, list))
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise ValueError(
                f"Not supported: an open_clip model with vision_cfg image_size={size}, which is not square."
            )
        size = size[0]
    if fields.take("timm_model_name", None, str) is not None:
        return _read_timm(values, size, arrays)
    if isinstance(values.get("layers"), list):
        raise ValueError(
            "Not supported: an open_clip model whose image tower is a ResNet (vision_cfg layers is a list)."
        )
    width = fields.take("width", 768, int)
    gap = fields.take("global_average_pool", False, bool)
    style = fields.take("pool_style", "open_clip", str)
    pool_type = fields.take("pool_type", "tok", str)
    after = fields.take("final_ln_after_pool", False, bool)
    pools: dict[tuple[bool, str, str], ImagePool] = {
        (False, "open_clip", "tok"): "first",
        (False, "open_clip", "avg"): "mean" if after else "norm_mean",
        (False, "big_vision_tok", "tok"): "first",
        (True, "open_clip", "tok"): "mean_all",
        (True, "big_vision_gap", "tok"): "mean",
    }
    if (gap, style, pool_type) not in pools:
        raise ValueError(
            f"Not supported: an open_clip model that pools images by pool_type={pool_type!r}, pool_style={style!r}, "
            f"global_average_pool={gap}."
        )
    stored: dict[str, VisionPosition] = {"learnable": "learned", "sin_cos_2d": "frozen"}
    position = fields.take("pos_embed_type", fields.take("pos_embed", "learnable", str), str)
    if position not in stored:
        raise ValueError(f"Not supported: an open_clip model with vision_cfg pos_embed_type={position!r}.")
    input_norm = fields.take("ln_pre", True, bool) and not fields.take("no_ln_pre", False, bool)
    patch = fields.take("patch_size", 16, int)
    config = VisionConfig(
        image_size=size,
        patch_size=patch,
        crop_edge=size > patch > 0 and size % patch > 0,
        width=width,
        depth=fields.take("layers", 12, int),
        heads=width // fields.take("head_width", 64, int),
        hidden=int(width * fields.take("mlp_ratio", 4.0, (int, float))),
        position=stored[position],
        class_token=True,
        pool=pools[gap, style, pool_type],
        input_norm=input_norm,
        layer_scale=float(fields.take("ls_init_value", 0.0, (int, float))),
        **_read_numerics(fields, quick),
    )
    fields.done()
    return config


def _read_timm(values: Mapping[str, Any], size: int, arrays: Arrays) -> VisionConfig:
    fields = _Fields(values, "vision_cfg")
    fields.take("image_size", None, (int, list))
    name = fields.take("timm_model_name", "", str)
    match = TIMM_NAME.fullmatch(name)
    pool, projection = fields.take("timm_pool", "avg", str), fields.take("timm_proj", "linear", str)
    projections: dict[str, Projection] = {"none": "none", "linear": "linear"}
    if not match or pool != "map" or projection not in projections:
        raise ValueError(
            f"Not supported: an open_clip model whose image tower is timm's {name} with timm_pool={pool!r} and "
            f"timm_proj={projection!r}; supported are SigLIP's plain towers with timm_pool='map'."
        )
    if fields.take("timm_proj_bias", False, bool):
        projections["linear"] = "linear_bias"
    fields.done()
    try:
        width = arrays.shape("visual.trunk.patch_embed.proj.weight")[0]
        hidden = arrays.shape("visual.trunk.blocks.0.mlp.fc1.weight")[0]
    except (KeyError, IndexError) as error:
        raise ValueError(f"The weights hold no image tower of timm's: {error} is missing or misshapen.") from error
    return VisionConfig(
        image_size=size,
        patch_size=int(match[2]),
        crop_edge=size > int(match[2]) and size % int(match[2]) > 0,
        width=width,
        depth=sum(bool(re.fullmatch(r"visual\.trunk\.blocks\.\d+\.mlp\.fc1\.weight", name)) for name in arrays),
        heads=_TIMM_HEADS[match[1]],
        hidden=hidden,
        position="learned",
        class_token=False,
        pool="attention",
        patch_bias=True,
        activation=_timm_activation(match[1]),
        norm_eps=1e-6,
        projection=projections[projection],
    )


def _timm_activation(size: str) -> Activation:
    return "gelu_tanh" if size == "giantopt" else "gelu"


def _read_text(values: Any, quick: bool) -> TextConfig:
    fields = _Fields(values, "text_cfg")
    width = fields.take("width", 512, int)
    vocab = fields.take("vocab_size", 49408, int)
    causal = fields.take("attention_mask", True, bool) and not fields.take("no_causal_mask", False, bool)
    style = fields.take("pool_style", "open_clip", str)
    pool = fields.take("pool_type", {"open_clip": "argmax", "big_vision_last": "last"}.get(style, style), str)
    end = fields.take("eos_id", 2, int)
    # argmax looks for the highest id of a text, and CLIP's vocabulary ends with the end token.
    pools: dict[str, dict[str, Any]] = {
        "argmax": {"pool": "end", "end_id": vocab - 1},
        "eos": {"pool": "end", "end_id": end},
        "last": {"pool": "last"},
    }
    if pool not in pools:
        raise ValueError(f"Not supported: an open_clip model with text_cfg pool_type={pool!r}.")
    kind = fields.take("proj_type", "linear", str)
    bias = fields.take("proj_bias", False, bool)
    config = TextConfig(
        context_length=fields.take("context_length", 77, int),
        vocab_size=vocab,
        width=width,
        depth=fields.take("layers", 12, int),
        heads=fields.take("heads", 8, int),
        hidden=int(width * fields.take("mlp_ratio", 4.0, (int, float))),
        position="learned",
        causal=causal,
        pad_id=fields.take("pad_id", 0, int),
        layer_scale=float(fields.take("ls_init_value", 0.0, (int, float))),
        projection="none" if kind == "none" else "linear_bias" if bias else "linear",
        **pools[pool],
        **_read_numerics(fields, quick),
    )
    fields.done()
    return config


def _read_numerics(fields: _Fields, quick: bool) -> dict[str, Any]:
    act, norm = (_Fields(fields.take(name, {}, dict), name) for name in ("act_kwargs", "norm_kwargs"))
    # CLIPA's PyTorch code has a field of its own for the argument of GELU.
    approximate = act.take("approximate", fields.take("gelu_approximate", "none", str), str)
    activations: dict[tuple[bool, str], Activation] = {
        (False, "none"): "gelu",
        (False, "tanh"): "gelu_tanh",
        (True, "none"): "gelu_quick",
    }
    if (quick, approximate) not in activations:
        raise ValueError(f"An open_clip model has no GELU with quick_gelu={quick} and approximate={approximate!r}.")
    eps = norm.take("eps", 1e-5, float)
    act.done()
    norm.done()
    return {"activation": activations[quick, approximate], "norm_eps": eps}


def write_model_cfg(config: CLIPConfig) -> dict[str, Any]:
    """open_clip's `model_cfg` for our config.

    What acts in training only, as `drop_path`, is left behind.

    Raises:
        ValueError: open_clip cannot compute this model; the message names each field in the way.
    """
    faults = _faults(config)
    if faults:
        raise ValueError("open_clip has no model with " + ", ".join(faults) + ".")
    timm = config.vision.pool == "attention"
    values: dict[str, Any] = {
        "embed_dim": config.embed,
        "vision_cfg": _write_timm(config.vision) if timm else _write_vision(config.vision),
        "text_cfg": _write_text(config.text),
        "init_logit_scale": config.init_logit_scale,
    }
    if config.init_logit_bias is not None:
        values["init_logit_bias"] = config.init_logit_bias
    if config.text.activation == "gelu_quick":
        values["quick_gelu"] = True
    if timm:
        values["custom_text"] = True
    return values


def _faults(config: CLIPConfig) -> list[str]:
    vision, text = config.vision, config.text
    refused: dict[str, bool] = {
        f"text.pool={text.pool!r}": text.pool not in ("last", "end"),
        "text.mask_padding=True": text.mask_padding,
        f"text.position={text.position!r}": text.position != "learned",
    }
    if vision.pool == "attention":
        refused |= _timm_faults(vision)
    else:
        refused |= {
            f"vision.pool={vision.pool!r}": vision.pool == "mean_all",
            "vision.class_token=False": not vision.class_token,
            "vision.patch_bias=True": vision.patch_bias,
            f"vision.projection={vision.projection!r}": vision.projection != "linear",
            f"vision.activation={vision.activation!r} beside text.activation={text.activation!r}": (
                "gelu_quick" in (vision.activation, text.activation) and vision.activation != text.activation
            ),
        }
    return [name for name, on in refused.items() if on]


def _timm_faults(vision: VisionConfig) -> dict[str, bool]:
    size = _timm_size(vision)
    shape = f"width={vision.width}, depth={vision.depth}, hidden={vision.hidden}, heads={vision.heads}"
    sides = _TIMM_SIDES.get((size, vision.patch_size), ())
    return {
        f"vision.pool='attention' at {shape}": not size,
        f"vision.pool='attention' at patch_size={vision.patch_size}, image_size={vision.image_size}": bool(size)
        and vision.image_size not in sides,
        f"vision.activation={vision.activation!r} in timm's towers": bool(size)
        and vision.activation != _timm_activation(size),
        f"vision.norm_eps={vision.norm_eps} in timm's towers": vision.norm_eps != 1e-6,
        "vision.class_token=True beside pool='attention'": vision.class_token,
        "vision.patch_bias=False beside pool='attention'": not vision.patch_bias,
        "vision.input_norm=True beside pool='attention'": vision.input_norm,
        f"vision.layer_scale={vision.layer_scale} beside pool='attention'": vision.layer_scale != 0,
    }


def _timm_size(vision: VisionConfig) -> str:
    shape = vision.width, vision.depth, vision.hidden
    return next((size for size, row in _TIMM_SIZES.items() if row == shape and _TIMM_HEADS[size] == vision.heads), "")


def _write_vision(vision: VisionConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.depth,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _ratio(vision.hidden, vision.width),
        "no_ln_pre": not vision.input_norm,
        "pool_type": "tok" if vision.pool == "first" else "avg",
        "final_ln_after_pool": vision.pool == "mean",
        "pos_embed_type": "learnable" if vision.position == "learned" else "sin_cos_2d",
    }
    return values | _write_numerics(vision)


def _write_timm(vision: VisionConfig) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "timm_model_name": f"vit_{_timm_size(vision)}_patch{vision.patch_size}_siglip_{vision.image_size}",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none" if vision.projection == "none" else "linear",
        "timm_proj_bias": vision.projection == "linear_bias",
    }


def _write_text(text: TextConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "mlp_ratio": _ratio(text.hidden, text.width),
        "pad_id": text.pad_id,
        "no_causal_mask": not text.causal,
        "pool_type": "last" if text.pool == "last" else "argmax" if text.end_id == text.vocab_size - 1 else "eos",
    }
    if values["pool_type"] == "eos":
        values["eos_id"] = text.end_id
    if text.projection == "none":
        values["proj_type"] = "none"
    if text.projection == "linear_bias":
        values["proj_bias"] = True
    return values | _write_numerics(text)


def _write_numerics(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"norm_kwargs": {"eps": tower.norm_eps}}
    if tower.activation == "gelu_tanh":
        values["act_kwargs"] = {"approximate": "tanh"}
    if tower.layer_scale:
        values["ls_init_value"] = tower.layer_scale
    return values


def _ratio(hidden: int, width: int) -> float:
    """A ratio whose product with `width` truncates to `hidden` in floating point too."""
    exact = hidden / width
    return cast(float, exact if int(width * exact) == hidden else (hidden + 0.5) / width)
