"""open_clip's directories and weight files, both ways."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from ..config import CLIPConfig, EvalResize, Interpolation, OPENAI_MEAN, OPENAI_STD, PixelTriple
from ..data import load_tokenizer, Tokenizer
from ._arrays import Arrays, open_arrays
from ._inputs import Preprocess
from ._mapping import export_arrays, import_arrays, leading_axes, patch_torch, Rule, transposed
from ._open_clip_config import Numerics, read_model_cfg, write_model_cfg
from ._open_clip_names import named_config
from ._positions import with_formula_where_equal, with_position
from ._pretrained import Pretrained
from ._torch_rules import linear_rules, norm_rules


CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""In the order in which open_clip itself looks for them, but for PyTorch files under their newer names."""

_IGNORED = ("attn_mask", "*.attn_mask", "input_resolution", "context_length", "vocab_size", "*.position_ids")
_RESIZES: dict[str, EvalResize] = {"shortest": "crop", "squash": "squash"}
_KERNELS: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}


def load_open_clip(
    path: Path | str, *, model: str | Mapping[str, Any] | None = None, numerics: Numerics = "open_clip"
) -> Pretrained:
    """Load a model of open_clip's ViT family: OpenAI's, LAION's, DataComp's, CLIPA's, SigLIP's.

    A sine-cosine table that is stored with the weights becomes the formula again where the two are equal in every bit.
    open_clip's configs of the CLIPA models say neither tanh GELU nor epsilon 1e-6, with which they were trained, and
    its tokenizer puts 0 where CLIPA keeps a last word piece; `numerics` chooses between the two, and the config that
    comes back records the choice.

    Args:
        path: a directory with `open_clip_config.json` and weights, or a weight file alone.
        model: for weights alone, one of open_clip's names, as `ViT-L-14-CLIPA`, or its config as a JSON object.
        numerics: open_clip, or as_trained for weights that come from JAX (CLIPA, SigLIP); others are the same in both.

    Raises:
        FileNotFoundError: the directory, its config or its weights are missing.
        ValueError: a file is damaged, does not fit the others, or the model has a part that this package lacks.
        ImportError: the weights are a PyTorch file, and PyTorch is not installed.
    """
    root = Path(path)
    values = _read_config(root, model)
    arrays = open_arrays(_weight_file(root) if root.is_dir() else root)
    model_cfg = values["model_cfg"]
    config = read_model_cfg(model_cfg, arrays, numerics)
    tokenizer = _read_tokenizer(root, model_cfg["text_cfg"], numerics) if root.is_dir() else None
    if tokenizer is not None and "pad_id" not in model_cfg["text_cfg"]:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, pad_id=tokenizer.pad_id))
    preprocess, mean, std = _read_preprocess(values.get("preprocess_cfg"), config.vision.image_size)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, pixel_mean=mean, pixel_std=std))
    # As a learned table, so that none of the size that the config claims is computed first.
    learned = dataclasses.replace(config, vision=dataclasses.replace(config.vision, position="learned"))
    clip = import_arrays(_rules(config, _text_prefix(arrays)), arrays, learned, ignored=_IGNORED)
    if config.vision.position == "frozen":
        clip = with_formula_where_equal(with_position(clip, "frozen"))
    return Pretrained(clip, clip.config, preprocess, tokenizer)


def export_open_clip(pretrained: Pretrained, directory: Path | str) -> None:
    """Write a directory that `open_clip.create_model_and_transforms("local-dir:...")` loads.

    A computed table of image positions is stored; activation, epsilon, pixel statistics, resize and tokenizer go along.
    What acts in training only, as `drop_path`, is left behind.

    Args:
        pretrained: the model with its preprocessing and, if it has one, its tokenizer.
        directory: where to write; files of the same names are replaced.

    Raises:
        ValueError: open_clip cannot compute this model; the message names each field in the way.
    """
    config = pretrained.config
    model_cfg = write_model_cfg(config)
    prefix = "text." if model_cfg.get("custom_text") else ""
    arrays = export_arrays(_rules(config, prefix), with_position(pretrained.model, "frozen"))
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    if pretrained.found_tokenizer is not None:
        model_cfg["text_cfg"] |= _write_tokenizer(pretrained.found_tokenizer, config, root)
    partial = root / f"{WEIGHT_FILES[0]}.partial"
    safetensors.numpy.save_file(arrays, partial, metadata={"format": "pt"})
    partial.replace(root / WEIGHT_FILES[0])
    values = {"model_cfg": model_cfg, "preprocess_cfg": _write_preprocess(pretrained)}
    (root / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_config(root: Path, model: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(model, str):
        return named_config(model)
    if model is not None:
        return dict(model) if "model_cfg" in model else {"model_cfg": dict(model)}
    if not root.is_dir():
        raise ValueError(f"{root} is a weight file alone: give model, one of open_clip's names or its config.")
    path = root / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{root} is no open_clip directory: it has no {CONFIG_FILE}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_cfg"), dict):
        raise ValueError(f"{path} must be a JSON object with a model_cfg.")
    return values


def _weight_file(root: Path) -> Path:
    for name in WEIGHT_FILES:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} holds no weights: it needs one of {', '.join(WEIGHT_FILES)}.")


def _text_prefix(arrays: Arrays) -> str:
    # open_clip loads either spelling, whatever the config's custom_text says.
    return "text." if any(name.startswith("text.") for name in arrays) else ""


def _rules(config: CLIPConfig, text_prefix: str) -> list[Rule]:
    return [
        *(_timm_rules(config) if config.vision.pool == "attention" else _vision_rules(config)),
        Rule("text.embedding", f"{text_prefix}token_embedding.weight"),
        Rule("text.position", f"{text_prefix}positional_embedding"),
        *_block_rules("text", f"{text_prefix}transformer.resblocks.{{i}}", bool(config.text.layer_scale)),
        *norm_rules("text.norm", f"{text_prefix}ln_final"),
        *_text_projection_rules(config, f"{text_prefix}text_projection"),
        Rule("logit_scale", "logit_scale"),
        *([] if config.init_logit_bias is None else [Rule("logit_bias", "logit_bias")]),
    ]


def _vision_rules(config: CLIPConfig) -> list[Rule]:
    return [
        Rule("vision.patch.weight", "visual.conv1.weight", patch_torch(config.vision.patch_size)),
        Rule("vision.class_token", "visual.class_embedding"),
        Rule("vision.position", "visual.positional_embedding", class_row=True),
        *(norm_rules("vision.input_norm", "visual.ln_pre") if config.vision.input_norm else []),
        *_block_rules("vision", "visual.transformer.resblocks.{i}", bool(config.vision.layer_scale)),
        *norm_rules("vision.norm", "visual.ln_post"),
        Rule("vision.projection.weight", "visual.proj"),
    ]


def _block_rules(tower: str, theirs: str, layer_scale: bool) -> list[Rule]:
    ours = f"{tower}.stack.blocks"
    scales = [
        Rule(f"{ours}.attention_scale", f"{theirs}.ls_1.gamma"),
        Rule(f"{ours}.mlp_scale", f"{theirs}.ls_2.gamma"),
    ]
    return [
        *norm_rules(f"{ours}.attention_norm", f"{theirs}.ln_1"),
        Rule(f"{ours}.attention.qkv.weight", f"{theirs}.attn.in_proj_weight", transposed),
        Rule(f"{ours}.attention.qkv.bias", f"{theirs}.attn.in_proj_bias"),
        *linear_rules(f"{ours}.attention.out", f"{theirs}.attn.out_proj"),
        *norm_rules(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        *linear_rules(f"{ours}.mlp.widen", f"{theirs}.mlp.c_fc"),
        *linear_rules(f"{ours}.mlp.narrow", f"{theirs}.mlp.c_proj"),
        *(scales if layer_scale else []),
    ]


def _timm_rules(config: CLIPConfig) -> list[Rule]:
    ours, trunk = "vision.stack.blocks", "visual.trunk"
    block, pool = f"{trunk}.blocks.{{i}}", f"{trunk}.attn_pool"
    projection = [Rule("vision.projection.weight", "visual.head.proj.weight", transposed)]
    if config.vision.projection == "linear_bias":
        projection.append(Rule("vision.projection.bias", "visual.head.proj.bias"))
    return [
        Rule("vision.patch.weight", f"{trunk}.patch_embed.proj.weight", patch_torch(config.vision.patch_size)),
        Rule("vision.patch.bias", f"{trunk}.patch_embed.proj.bias"),
        Rule("vision.position", f"{trunk}.pos_embed", leading_axes(1)),
        *norm_rules(f"{ours}.attention_norm", f"{block}.norm1"),
        *linear_rules(f"{ours}.attention.qkv", f"{block}.attn.qkv"),
        *linear_rules(f"{ours}.attention.out", f"{block}.attn.proj"),
        *norm_rules(f"{ours}.mlp_norm", f"{block}.norm2"),
        *linear_rules(f"{ours}.mlp.widen", f"{block}.mlp.fc1"),
        *linear_rules(f"{ours}.mlp.narrow", f"{block}.mlp.fc2"),
        *norm_rules("vision.norm", f"{trunk}.norm"),
        Rule("vision.attention_pool.probe", f"{pool}.latent", leading_axes(2)),
        *linear_rules("vision.attention_pool.query", f"{pool}.q"),
        *linear_rules("vision.attention_pool.key_value", f"{pool}.kv"),
        *linear_rules("vision.attention_pool.out", f"{pool}.proj"),
        *norm_rules("vision.attention_pool.norm", f"{pool}.norm"),
        *linear_rules("vision.attention_pool.mlp.widen", f"{pool}.mlp.fc1"),
        *linear_rules("vision.attention_pool.mlp.narrow", f"{pool}.mlp.fc2"),
        *([] if config.vision.projection == "none" else projection),
    ]


def _text_projection_rules(config: CLIPConfig, theirs: str) -> list[Rule]:
    kinds = {
        "none": [],
        "linear": [Rule("text.projection.weight", theirs)],
        "linear_bias": linear_rules("text.projection", theirs),
    }
    return kinds[config.text.projection]


def _read_preprocess(values: Any, size: int) -> tuple[Preprocess, PixelTriple, PixelTriple]:
    """Preprocessing and pixel statistics; open_clip's defaults where they are not given."""
    values = values or {}
    if not isinstance(values, dict):
        raise ValueError(f"preprocess_cfg of an open_clip config must be a JSON object, got {values!r}.")
    resize, kernel = values.get("resize_mode") or "shortest", values.get("interpolation") or "bicubic"
    if resize not in _RESIZES or kernel not in _KERNELS:
        raise ValueError(f"Not supported: an open_clip model with resize_mode={resize!r}, interpolation={kernel!r}.")
    mean, std = _triple(values, "mean", OPENAI_MEAN), _triple(values, "std", OPENAI_STD)
    return Preprocess(size, _RESIZES[resize], _KERNELS[kernel]), mean, std


def _triple(values: Mapping[str, Any], name: str, default: PixelTriple) -> PixelTriple:
    given = values.get(name)
    if given is None:
        return default
    if not isinstance(given, list) or len(given) != 3 or not all(type(value) in (int, float) for value in given):
        raise ValueError(f"preprocess_cfg.{name} of an open_clip config must be three numbers, got {given!r}.")
    red, green, blue = given
    return float(red), float(green), float(blue)


def _write_preprocess(pretrained: Pretrained) -> dict[str, Any]:
    vision, preprocess = pretrained.config.vision, pretrained.preprocess
    return {
        "size": preprocess.image_size,
        "mode": "RGB",
        "mean": list(vision.pixel_mean),
        "std": list(vision.pixel_std),
        "interpolation": preprocess.interpolation,
        "resize_mode": {ours: theirs for theirs, ours in _RESIZES.items()}[preprocess.resize],
    }


def _read_tokenizer(root: Path, text_cfg: Mapping[str, Any], numerics: Numerics) -> Tokenizer | None:
    """The tokenizer in the directory, as open_clip would use it; none where there is none that this package reads."""
    try:
        tokenizer = load_tokenizer(root)
    except (FileNotFoundError, ValueError):
        return None
    if (root / "clipa_tokenizer.json").is_file():
        return tokenizer
    if tokenizer.kind == "byte_pair":
        return tokenizer
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    clean, stripped = kwargs.get("clean") or "whitespace", kwargs.get("strip_sep_token")
    if stripped and numerics == "as_trained":
        return dataclasses.replace(tokenizer, kind="wordpiece", end_id=None)
    if stripped:
        tokenizer = dataclasses.replace(tokenizer, kind="wordpiece_sep", end_id=tokenizer.pad_id)
    # "lower" is what WordPiece does in any case.
    unknown = clean == "lower" and tokenizer.kind == "sentence_piece"
    return None if unknown else dataclasses.replace(tokenizer, repair=True, canonical=clean == "canonicalize")


def _write_tokenizer(tokenizer: Tokenizer, config: CLIPConfig, root: Path) -> dict[str, Any]:
    """Write a tokenizer's files; returns what open_clip's `text_cfg` says of it."""
    from ._hugging_face_processor import write_tokenizer_config

    # CLIPA's tokens in open_clip's form end in the id of padding, which open_clip writes over the separator.
    stripped = tokenizer.kind == "wordpiece_sep" and tokenizer.end_id == tokenizer.pad_id
    tokenizer.save(root)
    values = write_tokenizer_config(tokenizer, config.text.context_length)
    if stripped:
        values = {name: value for name, value in values.items() if name != "eos_token"} | {"sep_token": "[SEP]"}
    (root / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if tokenizer.kind == "byte_pair" and tokenizer.vocab_size == 49408:
        return {}  # open_clip's own default
    # For a local directory open_clip looks only whether there is a name, and reads the directory's files.
    names: dict[str, Any] = {"hf_tokenizer_name": "bert-base-uncased" if tokenizer.vocab_size == 30522 else root.name}
    if stripped:
        names["tokenizer_kwargs"] = {"strip_sep_token": True}
    elif tokenizer.canonical:
        names["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return names
