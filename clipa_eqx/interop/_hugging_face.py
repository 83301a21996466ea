"""Hugging Face's CLIPModel and SiglipModel directories, both ways."""

import contextlib
import dataclasses
import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.numpy
from tokenizers import normalizers, Regex, Tokenizer as FastTokenizer

from ..config import CLIPConfig
from ..data import load_tokenizer, Tokenizer
from ._hugging_face_arrays import join_probe, open_weights, SplitProbe
from ._hugging_face_config import kind_of, read_config, write_config
from ._hugging_face_processor import read_processor, write_processor, write_tokenizer_config
from ._mapping import export_arrays, import_arrays, joined, leading_axes, patch_torch, Rule, transposed
from ._positions import with_position
from ._pretrained import Pretrained
from ._torch_rules import linear_rules, norm_rules


_CONFIG, _PREPROCESSOR, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_TOKENIZER = "tokenizer_config.json"
# Counting buffers that early transformers stored among the weights.
_IGNORED = ("*.embeddings.position_ids",)


def is_hugging_face(path: Path | str) -> bool:
    """Whether a directory is one of Hugging Face's: its `config.json` names a `model_type`."""
    try:
        values = json.loads((Path(path) / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "model_type" in values


def load_hugging_face(path: Path | str) -> Pretrained:
    """Load a CLIPModel or SiglipModel with its preprocessing and its tokenizer.

    Weights of any floating type become float32. A CLIPModel whose config names `eos_token_id` 2, as early ones do,
    pools where the ids are highest; here it pools at the highest id of the vocabulary, which ends every text. Byte
    pairs repair broken texts first, as OpenAI's tokenizer does and transformers' does not; see `load_tokenizer`.

    Args:
        path: directory with `config.json`, `model.safetensors` or `pytorch_model.bin`, whole or in shards,
            `preprocessor_config.json` and, where there is one that this package reads, the files of a tokenizer.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is damaged, describes a model that this package does not have, or does not fit the others.
        ImportError: the weights are a PyTorch file, and PyTorch is not installed.
    """
    root = Path(path)
    values = _read_json(root / _CONFIG)
    tokenizer = _read_tokenizer(root)
    with _naming(root / _CONFIG):
        config = read_config(values, pad_id=None if tokenizer is None else tokenizer.pad_id)
    named = (root / name for name in (_PREPROCESSOR, _PROCESSOR))
    processor_file = next((file for file in named if file.is_file()), root / _PREPROCESSOR)
    processor_values = _read_json(processor_file)
    with _naming(processor_file):
        preprocess, config = read_processor(processor_values, config)
    weights = open_weights(root)
    if config.init_logit_bias is not None:
        weights = SplitProbe(weights)
    with _naming(root):
        model = import_arrays(_rules(config), weights, config, ignored=_IGNORED)
    return Pretrained(model, config, preprocess, tokenizer)


def export_hugging_face(pretrained: Pretrained, directory: Path | str) -> None:
    """Write a model as a directory that `CLIPModel.from_pretrained` or `SiglipModel.from_pretrained` loads.

    A model with a bias of its logits becomes a SiglipModel, another one a CLIPModel. A computed position table is
    written out as numbers. What acts in training only, as `drop_path`, is left behind.

    Args:
        pretrained: the model with its preprocessing and, if it has one, its tokenizer.
        directory: where to write; files of the same names are replaced.

    Raises:
        ValueError: neither of the two computes what this model does; the message names each field in the way.
    """
    config = pretrained.config
    kind = kind_of(config)
    arrays = export_arrays(_rules(config), with_position(pretrained.model, "frozen"))
    if kind == "siglip":
        arrays = join_probe(arrays)
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    partial = root / "model.safetensors.partial"
    safetensors.numpy.save_file(arrays, partial, metadata={"format": "pt"})
    partial.replace(root / "model.safetensors")
    tokenizer = pretrained.found_tokenizer
    if tokenizer is not None:
        _write_tokenizer(tokenizer, config.text.context_length, root)
    _write_json(root / _PREPROCESSOR, write_processor(pretrained.preprocess, config.vision, kind))
    _write_json(root / _CONFIG, write_config(config, start_id=None if tokenizer is None else tokenizer.start_id))


def _rules(config: CLIPConfig) -> list[Rule]:
    sigmoid = config.init_logit_bias is not None
    return [
        Rule(
            "vision.patch.weight",
            "vision_model.embeddings.patch_embedding.weight",
            patch_torch(config.vision.patch_size),
        ),
        Rule("vision.position", "vision_model.embeddings.position_embedding.weight", class_row=not sigmoid),
        *_block_rules("vision"),
        *norm_rules("vision.norm", "vision_model.post_layernorm"),
        Rule("text.embedding", "text_model.embeddings.token_embedding.weight"),
        Rule("text.position", "text_model.embeddings.position_embedding.weight"),
        *_block_rules("text"),
        *norm_rules("text.norm", "text_model.final_layer_norm"),
        *(_siglip_rules() if sigmoid else _clip_rules()),
    ]


def _clip_rules() -> list[Rule]:
    return [
        Rule("vision.class_token", "vision_model.embeddings.class_embedding"),
        *norm_rules("vision.input_norm", "vision_model.pre_layrnorm"),
        Rule("vision.projection.weight", "visual_projection.weight", transposed),
        Rule("text.projection.weight", "text_projection.weight", transposed),
        Rule("logit_scale", "logit_scale"),
    ]


def _siglip_rules() -> list[Rule]:
    head = "vision_model.head."
    return [
        Rule("vision.patch.bias", "vision_model.embeddings.patch_embedding.bias"),
        Rule("vision.attention_pool.probe", f"{head}probe", leading_axes(2)),
        *linear_rules("vision.attention_pool.query", f"{head}attention.query"),
        *linear_rules("vision.attention_pool.key_value", f"{head}attention.key_value"),
        *linear_rules("vision.attention_pool.out", f"{head}attention.out_proj"),
        *norm_rules("vision.attention_pool.norm", f"{head}layernorm"),
        *linear_rules("vision.attention_pool.mlp.widen", f"{head}mlp.fc1"),
        *linear_rules("vision.attention_pool.mlp.narrow", f"{head}mlp.fc2"),
        *linear_rules("text.projection", "text_model.head"),
        Rule("logit_scale", "logit_scale", leading_axes(1)),
        Rule("logit_bias", "logit_bias", leading_axes(1)),
    ]


def _block_rules(tower: str) -> list[Rule]:
    ours, theirs = f"{tower}.stack.blocks", f"{tower}_model.encoder.layers.{{i}}"
    weights, biases = (tuple(f"{theirs}.self_attn.{part}_proj.{leaf}" for part in "qkv") for leaf in ("weight", "bias"))
    return [
        *norm_rules(f"{ours}.attention_norm", f"{theirs}.layer_norm1"),
        Rule(f"{ours}.attention.qkv.weight", weights, joined(3, transposed)),
        Rule(f"{ours}.attention.qkv.bias", biases, joined(3)),
        *linear_rules(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj"),
        *norm_rules(f"{ours}.mlp_norm", f"{theirs}.layer_norm2"),
        *linear_rules(f"{ours}.mlp.widen", f"{theirs}.mlp.fc1"),
        *linear_rules(f"{ours}.mlp.narrow", f"{theirs}.mlp.fc2"),
    ]


def _read_tokenizer(root: Path) -> Tokenizer | None:
    try:
        tokenizer = load_tokenizer(root)
        # This class alone makes letters small where its file does not.
        if (root / _TOKENIZER).is_file() and _read_json(root / _TOKENIZER).get("tokenizer_class") == "Siglip2Tokenizer":
            return _cleaning_first(tokenizer, normalizers.Lowercase())
    except (FileNotFoundError, ValueError):
        return None
    return tokenizer


def _write_tokenizer(tokenizer: Tokenizer, length: int, root: Path) -> None:
    # transformers does no more to a text than its file says.
    (_cleaning_first(tokenizer, *_CANONICAL) if tokenizer.canonical else tokenizer).save(root)
    if tokenizer.kind == "byte_pair":
        # CLIP's tokenizer was read from vocab.json and merges.txt before there was a tokenizer.json.
        tokenizer.fast.model.save(str(root))
    _write_json(root / _TOKENIZER, write_tokenizer_config(tokenizer, length))


_CANONICAL = (
    normalizers.Lowercase(),
    normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
    normalizers.Replace(Regex(r"\s+"), " "),
    normalizers.Strip(),
)


def _cleaning_first(tokenizer: Tokenizer, *steps: normalizers.Normalizer) -> Tokenizer:
    """The same tokenizer with steps before those in its file."""
    fast = FastTokenizer.from_str(tokenizer.fast.to_str())
    own = [] if fast.normalizer is None else [fast.normalizer]
    fast.normalizer = normalizers.Sequence([*steps, *own])
    return dataclasses.replace(tokenizer, fast=fast)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no complete Hugging Face directory: it has no {path.name}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
