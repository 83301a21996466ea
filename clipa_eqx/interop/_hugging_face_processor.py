"""`preprocessor_config.json` and `tokenizer_config.json` of Hugging Face, as far as CLIP-like models use them."""

import dataclasses
import math
from typing import Any

from ..config import CLIPConfig, EvalResize, Interpolation, PixelTriple, VisionConfig
from ..data import Tokenizer
from ._hugging_face_config import Kind
from ._inputs import Preprocess


# Numbers of Pillow's kernels.
_KERNELS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


def read_processor(values: dict[str, Any], config: CLIPConfig) -> tuple[Preprocess, CLIPConfig]:
    """What a `preprocessor_config.json` says; fields that it leaves out are those of the model's kind.

    Args:
        values: the JSON object, or that of a `processor_config.json`, which has it as its `image_processor`.
        config: the model that it belongs to.

    Returns:
        The preprocessing, and the model's config with the pixel statistics of the file.

    Raises:
        ValueError: a step that this package does not do, or a size that the model does not take.
    """
    values = values.get("image_processor", values)
    if not isinstance(values, dict):
        raise ValueError(f"image_processor must be a JSON object, got {values!r}.")
    values = {name: value for name, value in values.items() if value is not None}
    kernel = values.get("resample", 3)
    if kernel not in _KERNELS:
        raise ValueError(f"resample={kernel!r} is not supported; 2 (bilinear) and 3 (bicubic) are.")
    for step in ("do_resize", "do_rescale"):
        if values.get(step, True) is not True:
            raise ValueError(f"{step}={values[step]!r} is not supported: pictures are always resized and scaled.")
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise ValueError(f"rescale_factor={factor!r} is not supported; 1/255 is.")
    vision = config.vision
    mean = _triple("image_mean", values.get("image_mean", vision.pixel_mean))
    std = _triple("image_std", values.get("image_std", vision.pixel_std))
    if values.get("do_normalize", True) is not True:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    preprocess = Preprocess(vision.image_size, _read_resize(values, config), _KERNELS[kernel])
    return preprocess, dataclasses.replace(config, vision=dataclasses.replace(vision, pixel_mean=mean, pixel_std=std))


def _read_resize(values: dict[str, Any], config: CLIPConfig) -> EvalResize:
    side = config.vision.image_size
    square, shortest = {"height": side, "width": side}, {"shortest_edge": side}
    crops = values.get("do_center_crop", config.init_logit_bias is None)
    size = values.get("size", side)
    crop_size = values.get("crop_size", side) if crops else side
    if crop_size in (side, square):
        if crops and size in (side, shortest):
            return "crop"
        if size == square or (size == side and not crops):
            return "squash"
    raise ValueError(
        f"size={size!r} with do_center_crop={crops} and crop_size={values.get('crop_size')!r} is not supported: this "
        f"model takes {side} x {side} px, from a resize of the shortest edge to {side} and a centre crop, or from a "
        "resize of both sides."
    )


def _triple(name: str, value: Any) -> PixelTriple:
    if not isinstance(value, list | tuple) or [type(entry) in (int, float) for entry in value] != [True] * 3:
        raise ValueError(f"{name} must be three numbers, got {value!r}.")
    red, green, blue = map(float, value)
    return red, green, blue


def write_processor(preprocess: Preprocess, vision: VisionConfig, kind: Kind) -> dict[str, Any]:
    """The `preprocessor_config.json` of a model."""
    side = {"height": preprocess.image_size, "width": preprocess.image_size}
    crop = preprocess.resize == "crop"
    return {
        # Only CLIP's processor cuts out the centre.
        "image_processor_type": "CLIPImageProcessor" if crop or kind == "clip" else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocess.image_size} if crop else side,
        "resample": next(number for number, kernel in _KERNELS.items() if kernel == preprocess.interpolation),
        "do_center_crop": crop,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.pixel_mean),
        "image_std": list(vision.pixel_std),
    }


def write_tokenizer_config(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """The `tokenizer_config.json` that goes with a `tokenizer.json`.

    Hugging Face never splits a token that it pads with. Byte pairs are padded with an ordinary piece, the exclamation
    mark in CLIP's vocabulary, so that text would be read otherwise; they are padded with the end token there, which
    comes after the token that is pooled and changes no embedding.

    Args:
        tokenizer: the tokenizer.
        length: most ids of a text.
    """
    pieces = tokenizer.tokens()
    pad_id = tokenizer.pad_id
    if tokenizer.kind == "byte_pair" and tokenizer.end_id is not None:
        pad_id = tokenizer.end_id
    bounds = {"bos_token": tokenizer.start_id, "eos_token": tokenizer.end_id}
    values: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer" if tokenizer.kind == "byte_pair" else "PreTrainedTokenizerFast",
        "model_max_length": length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "pad_token": pieces[pad_id],
        "unk_token": "<unk>" if tokenizer.kind == "sentence_piece" else tokenizer.fast.model.unk_token,
    }
    return values | {name: pieces[index] for name, index in bounds.items() if index is not None}
