"""Small weights in every form that a run can start from."""

import dataclasses

import numpy as np
import safetensors.numpy
from flax_reference import random_arrays, random_model
from helpers import tiny_run, write_vocabulary
from hugging_face_files import CLIP_FORM, tiny_pretrained, write_byte_pair
from test_interop_big_vision import image_shapes, text_shapes
from test_interop_clipa_jax import clipa_shapes, IMAGE, TEXT, write_npz
from test_interop_image_tower import mae_positions

from clipa_eqx.config import OptimConfig, RunConfig, StageConfig
from clipa_eqx.data import load_tokenizer
from clipa_eqx.interop import (
    export_hugging_face,
    export_open_clip,
    load_big_vision,
    load_clipa_jax,
    load_hugging_face,
    load_open_clip,
    load_pretrained,
    Preprocess,
    Pretrained,
    save_pretrained,
)


def own_pretrained(directory, seed=0):
    """A model of `tiny_run`'s size with its vocabulary."""
    model = random_model(tiny_run(directory).model)
    tokenizer = load_tokenizer(write_vocabulary(directory / "words.txt"))
    return Pretrained(model, model.config, Preprocess(32, "squash", "bicubic"), tokenizer)


def clipa_npz(directory):
    path = write_npz(directory / "clipa.npz", random_arrays(clipa_shapes(IMAGE, TEXT, grid=4)))
    return path, load_clipa_jax(path)


def big_vision_npz(directory):
    shapes = image_shapes("map") | text_shapes(16) | {"t": (1,), "b": (1,)}
    path = write_npz(directory / "siglip.npz", random_arrays(shapes))
    return path, load_big_vision(path)


def open_clip(directory):
    export_open_clip(own_pretrained(directory), directory / "open_clip")
    return directory / "open_clip", load_open_clip(directory / "open_clip").model


def hugging_face(directory):
    (directory / "bpe").mkdir()
    export_hugging_face(tiny_pretrained(CLIP_FORM, write_byte_pair(directory / "bpe")), directory / "hf")
    return directory / "hf", load_hugging_face(directory / "hf").model


def run_directory(directory):
    save_pretrained(own_pretrained(directory), directory / "run")
    return directory / "run", load_pretrained(directory / "run").model


FORMS = {
    "clipa": clipa_npz,
    "big_vision": big_vision_npz,
    "open_clip": open_clip,
    "hugging_face": hugging_face,
    "run": run_directory,
}
"""Writes weights in a form; returns where they lie and the model that the form's own reader makes of them."""


def tune_config(model, name, **fields):
    """A run of one stage of one step that starts from weights."""
    stage = StageConfig(
        name="tune",
        samples=16,
        batch_size=16,
        image_size=model.config.vision.image_size,
        text_length=model.config.text.context_length,
        loss="softmax" if model.logit_bias is None else "sigmoid",
        position_transfer="resample",
        optim=OptimConfig(learning_rate=1e-9, weight_decay=0.0),
    )
    return dataclasses.replace(RunConfig(model=model.config, stages=(stage,), init_from=str(name)), **fields)


def write_image_tower(path, *, width=16, hidden=32, patch=8, depth=2, side=4, mae=False, seed=3):
    """A vision transformer under timm's names, or under MAE's with its computed positions and its decoder."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (0.3 * rng.standard_normal(shape)).astype(np.float32)
    arrays = {
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "cls_token": draw(1, 1, width),
        "pos_embed": mae_positions(side, width) if mae else draw(1, side * side + 1, width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    sizes = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        for name in ("norm1", "norm2"):
            arrays |= {f"{block}.{name}.weight": 1 + draw(width), f"{block}.{name}.bias": draw(width)}
        for name, shape in sizes.items():
            arrays |= {f"{block}.{name}.weight": draw(*shape), f"{block}.{name}.bias": draw(shape[0])}
    if mae:
        arrays |= {"mask_token": draw(1, 1, 8), "decoder_pos_embed": draw(1, side * side + 1, 8)}
    else:
        arrays |= {"head.weight": draw(5, width), "head.bias": draw(5)}
    safetensors.numpy.save_file(arrays, path)
    return arrays
