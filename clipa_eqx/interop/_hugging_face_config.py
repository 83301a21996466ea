"""`config.json` of Hugging Face's CLIPModel and SiglipModel, both ways."""

import math
from typing import Any, Literal

from ..config import Activation, CLIPConfig, OPENAI_MEAN, OPENAI_STD, PixelTriple, TextConfig, VisionConfig


Kind = Literal["clip", "siglip"]
"""`model_type` of the two models that this package reads and writes."""

SIGLIP_MEAN: PixelTriple = (0.5, 0.5, 0.5)
"""SigLIP maps pixels to [-1, 1]: this is subtracted, and it is divided by the same."""

_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "gelu_quick",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_ACTIVATION_NAMES = {"gelu_quick": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

# Values of fields that a config.json leaves out: transformers writes only what differs from its own defaults.
_TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP_STYLE = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_STYLE = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_VISION_DEFAULTS: dict[Kind, dict[str, Any]] = {
    "clip": {**_TOWER, **_CLIP_STYLE, "image_size": 224, "patch_size": 32, "num_channels": 3},
    "siglip": {
        **_TOWER,
        **_SIGLIP_STYLE,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "vision_use_head": True,
    },
}
_TEXT_DEFAULTS: dict[Kind, dict[str, Any]] = {
    "clip": {
        **_TOWER,
        **_CLIP_STYLE,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "siglip": {
        **_TOWER,
        **_SIGLIP_STYLE,
        "vocab_size": 32000,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "projection_size": None,
    },
}

# A CLIPModel whose config names this end token was written before transformers knew the right one, and pools where the
# ids are highest.
_UNTRUE_END = 2

# What a model must be for the target to compute the same, field by field.
_CLIP_FORM: dict[str, Any] = {
    "vision.class_token": True,
    "vision.pool": "first",
    "vision.input_norm": True,
    "vision.patch_bias": False,
    "vision.layer_scale": 0.0,
    "vision.projection": "linear",
    "text.position": "learned",
    "text.causal": True,
    "text.pool": "end",
    "text.mask_padding": False,
    "text.layer_scale": 0.0,
    "text.projection": "linear",
}
_SIGLIP_FORM: dict[str, Any] = {
    "vision.class_token": False,
    "vision.pool": "attention",
    "vision.input_norm": False,
    "vision.patch_bias": True,
    "vision.layer_scale": 0.0,
    "vision.projection": "none",
    "text.position": "learned",
    "text.causal": False,
    "text.pool": "last",
    "text.mask_padding": False,
    "text.layer_scale": 0.0,
    "text.projection": "linear_bias",
}


def read_config(values: dict[str, Any], *, pad_id: int | None = None) -> CLIPConfig:
    """The model that a `config.json` describes, with the pixel statistics that go with its kind.

    Args:
        values: the JSON object.
        pad_id: id that the tokenizer pads with; none: 0 for CLIP, as OpenAI pads, and SigLIP's own. Neither model
            looks at it, and in CLIP's files it is often wrong.

    Raises:
        ValueError: the file describes another kind of model, or a part that this package does not have.
    """
    kind = values.get("model_type")
    if kind == "clip":
        return _read_clip(values, pad_id)
    if kind == "siglip":
        return _read_siglip(values, pad_id)
    raise ValueError(f"model_type={kind!r} is not supported; clip and siglip are.")


def _read_clip(values: dict[str, Any], pad_id: int | None) -> CLIPConfig:
    vision = _section(values, "clip", "vision_config")
    text = _section(values, "clip", "text_config")
    embed, logit_scale = values.get("projection_dim", 512), values.get("logit_scale_init_value", 2.6592)
    _check_type("projection_dim", embed, 512)
    _check_type("logit_scale_init_value", logit_scale, 2.6592)
    end_id = text["eos_token_id"]
    return CLIPConfig(
        embed=embed,
        vision=VisionConfig(
            **_tower_fields(vision),
            **_image_fields(vision),
            class_token=True,
            pool="first",
            input_norm=True,
            pixel_mean=OPENAI_MEAN,
            pixel_std=OPENAI_STD,
        ),
        text=TextConfig(
            **_tower_fields(text),
            **_token_fields(text),
            pool="end",
            causal=True,
            pad_id=pad_id or 0,
            end_id=text["vocab_size"] - 1 if end_id == _UNTRUE_END else end_id,
        ),
        init_logit_scale=float(logit_scale),
    )


def _read_siglip(values: dict[str, Any], pad_id: int | None) -> CLIPConfig:
    vision = _section(values, "siglip", "vision_config")
    text = _section(values, "siglip", "text_config")
    if not vision["vision_use_head"]:
        raise ValueError("vision_config.vision_use_head=false leaves the image tower without an embedding.")
    embed = text["projection_size"] or text["hidden_size"]
    if vision["hidden_size"] != embed:
        raise ValueError(
            f"vision_config.hidden_size={vision['hidden_size']} and the {embed} features of a text embedding differ: "
            "images and texts of this model do not meet in one space."
        )
    return CLIPConfig(
        embed=embed,
        vision=VisionConfig(
            **_tower_fields(vision),
            **_image_fields(vision),
            class_token=False,
            pool="attention",
            patch_bias=True,
            projection="none",
            pixel_mean=SIGLIP_MEAN,
            pixel_std=SIGLIP_MEAN,
        ),
        text=TextConfig(
            **_tower_fields(text),
            **_token_fields(text),
            pool="last",
            causal=False,
            pad_id=text["pad_token_id"] if pad_id is None else pad_id,
            projection="linear_bias",
        ),
        init_logit_scale=math.log(10),
        init_logit_bias=-10.0,
    )


def _section(values: dict[str, Any], kind: Kind, name: str) -> dict[str, Any]:
    defaults = (_VISION_DEFAULTS if name == "vision_config" else _TEXT_DEFAULTS)[kind]
    # Files of early transformers repeat a section under a second name, which then counts instead of the first.
    section = values.get(f"{name}_dict")
    section = (values.get(name) or {}) if section is None else section
    if not isinstance(section, dict):
        raise ValueError(f"{name} must be a JSON object, got {section!r}.")
    fields = {field: section.get(field, default) for field, default in defaults.items()}
    for field, value in fields.items():
        _check_type(f"{name}.{field}", value, defaults[field])
    if fields["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(f"{name}.hidden_act={fields['hidden_act']!r} is not supported; {', '.join(_ACTIVATIONS)} are.")
    if fields.get("num_channels", 3) != 3:
        raise ValueError(f"{name}.num_channels={fields['num_channels']} is not supported; 3 is.")
    return fields


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a value has the type of its default; a default of None stands for a whole number."""
    if isinstance(default, float):
        if type(value) not in (int, float):
            raise ValueError(f"{name} must be a number, got {value!r}.")
    elif isinstance(default, int | None) and not (type(value) is int or value is default or type(default) is bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")


def _tower_fields(section: dict[str, Any]) -> dict[str, Any]:
    return {
        "width": section["hidden_size"],
        "depth": section["num_hidden_layers"],
        "heads": section["num_attention_heads"],
        "hidden": section["intermediate_size"],
        "activation": _ACTIVATIONS[section["hidden_act"]],
        "norm_eps": float(section["layer_norm_eps"]),
        "position": "learned",
    }


def _image_fields(section: dict[str, Any]) -> dict[str, Any]:
    size, patch = section["image_size"], section["patch_size"]
    return {"image_size": size, "patch_size": patch, "crop_edge": size > patch > 0 and size % patch > 0}


def _token_fields(section: dict[str, Any]) -> dict[str, Any]:
    return {"context_length": section["max_position_embeddings"], "vocab_size": section["vocab_size"]}


def kind_of(config: CLIPConfig) -> Kind:
    """Which of the two models computes what a model of this package computes.

    Raises:
        ValueError: neither does; the message names each field in the way.
    """
    kind: Kind = "clip" if config.init_logit_bias is None else "siglip"
    faults = [
        f"{path}={value!r}, where it has {wanted!r}"
        for path, wanted in (_CLIP_FORM if kind == "clip" else _SIGLIP_FORM).items()
        if (value := _field(config, path)) != wanted
    ]
    # Reading the file, CLIPModel takes this one id for the mistake of its early days.
    if kind == "clip" and config.text.end_id == _UNTRUE_END != config.text.vocab_size - 1:
        faults.append(f"text.end_id={_UNTRUE_END}, which it takes to mean the highest id of a text")
    if faults:
        name, loss = ("CLIPModel", "softmax") if kind == "clip" else ("SiglipModel", "sigmoid")
        raise ValueError(
            f"Hugging Face's {name}, the form for models of the {loss} loss, cannot express this model: "
            f"{'; '.join(faults)}."
        )
    return kind


def _field(config: CLIPConfig, path: str) -> Any:
    tower, _, name = path.partition(".")
    return getattr(getattr(config, tower), name)


def write_config(config: CLIPConfig, *, start_id: int | None) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
        config: the model.
        start_id: id that begins a text, if one does.

    Raises:
        ValueError: neither CLIPModel nor SiglipModel computes what the model does.
    """
    kind = kind_of(config)
    vision, text = config.vision, config.text
    vision_values = {
        **_tower_values(vision),
        "model_type": f"{kind}_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
    }
    text_values = {
        **_tower_values(text),
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": start_id,
        "eos_token_id": None if text.end_id < 0 else text.end_id,
        "pad_token_id": text.pad_id,
    }
    values: dict[str, Any] = {
        "architectures": ["CLIPModel" if kind == "clip" else "SiglipModel"],
        "model_type": kind,
        "dtype": "float32",
        "torch_dtype": "float32",
        "vision_config": vision_values,
        "text_config": text_values,
    }
    if kind == "siglip":
        text_values["projection_size"] = config.embed
        vision_values["vision_use_head"] = True
    else:
        values |= {"projection_dim": config.embed, "logit_scale_init_value": config.init_logit_scale}
        vision_values["projection_dim"] = text_values["projection_dim"] = config.embed
    return values


def _tower_values(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "hidden_act": _ACTIVATION_NAMES[tower.activation],
        "layer_norm_eps": tower.norm_eps,
    }
