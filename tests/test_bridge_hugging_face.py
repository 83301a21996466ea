"""Live CLIPModel and SiglipModel of transformers: the same embeddings, ids and pixels in both directions."""

import dataclasses
import io
import json
import os

import jax
import numpy as np
import pytest
from data_files import encode, picture
from helpers import spiece
from hugging_face_files import (
    assert_equal_models,
    CLIP_FORM,
    SIGLIP_FORM,
    tiny_pretrained,
    VOCAB_SIZE,
    write_byte_pair,
)
from PIL import Image

from clipa_eqx.data import eval_image
from clipa_eqx.interop import export_hugging_face, load_hugging_face, Preprocess
from clipa_eqx.interop._hugging_face import is_hugging_face
from clipa_eqx.interop._hugging_face_processor import write_processor


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Normalised embeddings in float32; no operation differs, only the order of sums.
TOLERANCE = 2e-6
PROCESSOR = {
    "clip": {"do_center_crop": True, "resample": 3},
    "siglip": {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


def make_live(kind, *, vision=None, text=None, projection=12, seed=0):
    """A live model of random weights, all of them moved away from where they start."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} | {
        "image_size": 24,
        "patch_size": 8,
        **(vision or {}),
    }
    text = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4} | {
        "max_position_embeddings": 9,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": VOCAB_SIZE - 2,
        "eos_token_id": VOCAB_SIZE - 1,
        "pad_token_id": 0,
        **(text or {}),
    }
    torch.manual_seed(seed)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
        model = transformers.CLIPModel(config)
    else:
        text["projection_size"] = vision["hidden_size"]
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save_live(model, kind, directory, **options):
    model.save_pretrained(directory, **options)
    write_byte_pair(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR[kind]))
    return directory


def inputs_of(config, seed=0, count=3):
    rng = np.random.default_rng(seed)
    side, length = config.vision.image_size, config.text.context_length
    pixels = rng.normal(size=(count, side, side, 3)).astype(np.float32)
    tokens = rng.integers(1, config.text.vocab_size - 2, (count, length)).astype(np.int32)
    if config.text.pool == "end":
        for row in range(count):
            end = 3 + 2 * row
            tokens[row, end:] = 0
            tokens[row, end] = config.text.end_id
    return pixels, tokens


@jax.jit
def embed(model, pixels, tokens):
    return jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(tokens)


def embed_live(model, pixels, tokens):
    with torch.inference_mode():
        outputs = model(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    return outputs.image_embeds.numpy(), outputs.text_embeds.numpy(), outputs.logits_per_image.numpy()


def assert_same_embeddings(ours, live, config):
    pixels, tokens = inputs_of(config)
    image, text = embed(ours, pixels, tokens)
    live_image, live_text, live_logits = embed_live(live, pixels, tokens)
    np.testing.assert_allclose(image, live_image, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(text, live_text, rtol=0, atol=TOLERANCE)
    logits = np.exp(ours.logit_scale) * np.asarray(image) @ np.asarray(text).T
    logits = logits if ours.logit_bias is None else logits + ours.logit_bias
    np.testing.assert_allclose(logits, live_logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "vision", "text"),
    [
        ("clip", {}, {}),
        ("clip", {"hidden_act": "gelu", "image_size": 32, "layer_norm_eps": 1e-6}, {"hidden_act": "gelu"}),
        ("clip", {"hidden_size": 64, "num_attention_heads": 4, "patch_size": 4}, {"eos_token_id": 2}),
        ("siglip", {}, {}),
        ("siglip", {"image_size": 29}, {}),
        ("siglip", {"hidden_size": 48, "num_attention_heads": 3, "image_size": 40}, {"max_position_embeddings": 16}),
    ],
)
def test_live_models_load(tmp_path, kind, vision, text):
    live = make_live(kind, vision=vision, text=text)
    directory = save_live(live, kind, tmp_path / "live")
    assert is_hugging_face(directory)
    pretrained = load_hugging_face(directory)
    assert pretrained.config == pretrained.model.config
    assert pretrained.config.text.context_length == live.config.text_config.max_position_embeddings
    assert pretrained.preprocess.resize == ("crop" if kind == "clip" else "squash")
    assert_same_embeddings(pretrained.model, live, pretrained.config)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_shards_halves_and_torch_files_load(tmp_path, kind):
    live = make_live(kind)
    whole = load_hugging_face(save_live(live, kind, tmp_path / "whole"))
    shards = save_live(live, kind, tmp_path / "shards", max_shard_size="6KB")
    assert not (shards / "model.safetensors").exists()
    assert len([*shards.glob("*.safetensors")]) > 2
    assert_equal_models(load_hugging_face(shards).model, whole.model)
    pickled = save_live(live, kind, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    buffers = {
        "vision_model.embeddings.position_ids": torch.arange(10),
        "text_model.embeddings.position_ids": torch.ones(1, 9),
    }
    torch.save(live.state_dict() | buffers, pickled / "pytorch_model.bin")
    assert_equal_models(load_hugging_face(pickled).model, whole.model)
    half = save_live(live.to(torch.bfloat16), kind, tmp_path / "half")
    rounded = load_hugging_face(half).model
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(rounded)} == {"float32"}
    assert_same_embeddings(rounded, live.float(), whole.config)


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_bomb_does_not_go_off(tmp_path):
    directory = save_live(make_live("clip"), "clip", tmp_path / "live")
    (directory / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb(tmp_path / "crater")}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a PyTorch file of plain tensors"):
        load_hugging_face(directory)
    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize(
    ("config", "position", "name"),
    [(CLIP_FORM, "sincos2d", "CLIPModel"), (SIGLIP_FORM, "learned", "SiglipModel")],
    ids=["clip", "siglip"],
)
def test_exported_models_embed_alike(tmp_path, config, position, name):
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, position=position))
    pretrained = tiny_pretrained(config, write_byte_pair(tmp_path / "bpe"))
    export_hugging_face(pretrained, tmp_path / "exported")
    live = transformers.AutoModel.from_pretrained(tmp_path / "exported")
    assert type(live).__name__ == name
    assert_same_embeddings(pretrained.model, live.eval(), config)


def test_tokenizer_of_siglip_moves_both_ways(tmp_path):
    theirs = make_live("siglip", text={"vocab_size": 12, "pad_token_id": 1})
    folder = save_live(theirs, "siglip", tmp_path / "theirs")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "spiece.model").write_bytes(spiece())
    live = transformers.SiglipTokenizer(str(folder / "spiece.model"))
    ours = load_hugging_face(folder)
    export_hugging_face(ours, tmp_path / "exported")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    back = load_hugging_face(tmp_path / "exported")
    captions = ["a dog", "A  dog's, DOGS!", "", "a_a \u4e2d &amp;", "a dog " * 9]
    ids = ours.tokenizer.encode_batch(captions, 9)
    for tokenizer in (live, again):
        rows = tokenizer(captions, padding="max_length", truncation=True, max_length=9, return_tensors="np")
        np.testing.assert_array_equal(rows["input_ids"], ids)
    np.testing.assert_array_equal(back.tokenizer.encode_batch(captions, 9), ids)
    assert ours.config.text.pad_id == back.config.text.pad_id == ours.tokenizer.pad_id == 1


def test_exported_tokenizer_gives_the_same_ids(tmp_path):
    pretrained = tiny_pretrained(CLIP_FORM, write_byte_pair(tmp_path / "bpe"))
    export_hugging_face(pretrained, tmp_path / "exported")
    captions = ["a dog runs!", "The DOG's  run", "", "é中 !! 12", "a b c d e f g h i j k l"]
    ours = pretrained.tokenizer.encode_batch(captions, 9)
    live = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    theirs = live(captions, padding="max_length", truncation=True, max_length=9, return_tensors="np")
    real = theirs["attention_mask"] == 1
    np.testing.assert_array_equal(real.sum(1), np.argmax(ours == VOCAB_SIZE - 1, axis=1) + 1)
    np.testing.assert_array_equal(theirs["input_ids"][real], ours[real])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_exported_processor_makes_the_same_pixels(tmp_path, kind, resize):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    processors = {
        "CLIPImageProcessor": clip.CLIPImageProcessorPil,
        "SiglipImageProcessor": siglip.SiglipImageProcessorPil,
    }
    vision = (CLIP_FORM if kind == "clip" else SIGLIP_FORM).vision
    values = write_processor(Preprocess(24, resize, "bicubic"), vision, kind)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    live = processors[values["image_processor_type"]].from_pretrained(tmp_path)
    file = encode(picture(width=70, height=50), "PNG")
    theirs = live(Image.open(io.BytesIO(file)), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    pixels = eval_image(file, 24, resize=resize, interpolation="bicubic", max_pixels=10**6)
    ours = (pixels / np.float32(255) - np.float32(vision.pixel_mean)) / np.float32(vision.pixel_std)
    assert np.mean(np.abs(ours - theirs) * np.float32(vision.pixel_std)) * 255 < 0.5
