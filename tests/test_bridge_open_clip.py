"""open_clip's models, live: the same weights give the same embeddings, in both directions."""

import copy
import dataclasses
import importlib
import importlib.util
import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import spiece
from PIL import Image

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.data import eval_image, load_tokenizer, train_tokenizer
from clipa_eqx.interop import (
    _open_clip_config as open_clip_config,
    compare_to_open_clip,
    export_open_clip,
    load_open_clip,
    load_pretrained,
    open_arrays,
    Preprocess,
    Pretrained,
)
from clipa_eqx.interop._open_clip_names import _NAME, named_config
from clipa_eqx.models import make_clip, normalize_pixels, scale_pixels


if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

import torch
from torch_stubs import import_open_clip


open_clip = import_open_clip()
timm = importlib.import_module("timm")

VISION = {"image_size": 28, "layers": 2, "width": 64, "head_width": 16, "patch_size": 7}
TEXT = {"context_length": 9, "vocab_size": 50, "width": 48, "heads": 4, "layers": 3}
CLIPA = {
    "embed_dim": 40,
    "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True, "mlp_ratio": 3.7362},
}
TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
MODELS = {
    "clipa": CLIPA,
    "clipa as trained": {
        **CLIPA,
        "vision_cfg": {**CLIPA["vision_cfg"], **TANH, "pos_embed_type": "sin_cos_2d"},
        "text_cfg": {**CLIPA["text_cfg"], **TANH},
    },
    # The form of UCSC-VLAA/openvision-*: tanh GELU in the text tower alone.
    "openvision": {
        **CLIPA,
        "vision_cfg": {**CLIPA["vision_cfg"], "norm_kwargs": {"eps": 1e-6}, "mlp_ratio": 3.7362},
        "text_cfg": {**CLIPA["text_cfg"], **TANH, "hf_tokenizer_name": "bert-base-uncased"}
        | {"tokenizer_kwargs": {"strip_sep_token": True}},
    },
    "openai": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "laion": {
        "embed_dim": 32,
        "vision_cfg": {**VISION, "mlp_ratio": 4.9231, "ls_init_value": 0.1},
        "text_cfg": {**TEXT, "layers": 1},
    },
    "siglip": {
        "embed_dim": 48,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 28,
            "timm_model_name": "vit_base_patch7_siglip_28",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        | {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
    },
}


@timm.models.register_model
def vit_base_patch7_siglip_28(num_classes, global_pool, **_):
    """A small tower under a name of timm's form, with the 12 heads of timm's base."""
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 12, "mlp_ratio": 3.7362}
    return timm.models.VisionTransformer(**shape, class_token=False, num_classes=num_classes, global_pool=global_pool)


def live_model(model_cfg):
    """A model of open_clip's with every number perturbed, biases, norms and scales included."""
    cfg = copy.deepcopy(model_cfg)
    kind = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(0)
    model = kind(**cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def save_live(model, model_cfg, root):
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    safetensors.numpy.save_file(arrays, root / "open_clip_model.safetensors")
    (root / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    return arrays


def inputs(config, examples=3):
    rng = np.random.default_rng(1)
    side, text = config.vision.image_size, config.text
    pixels = rng.normal(size=(examples, side, side, 3)).astype(np.float32)
    tokens = rng.integers(1, text.vocab_size - 1, (examples, text.context_length)).astype(np.int32)
    for row in range(examples):
        if text.pool == "end":
            tokens[row, 2 * row + 2 :] = 0
            tokens[row, 2 * row + 1] = text.end_id
    return pixels, tokens


def difference(ours, theirs):
    """Largest difference of normalised embeddings, of pictures and of texts."""
    pixels, tokens = inputs(ours.config)
    image, text = jax.jit(lambda p, t: (jax.vmap(ours.encode_image)(p), jax.vmap(ours.encode_text)(t)))(pixels, tokens)
    with torch.no_grad():
        their_image = theirs.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2), normalize=True).numpy()
        their_text = theirs.encode_text(torch.from_numpy(tokens).long(), normalize=True).numpy()
    # Embeddings that do not depend on the input would hide every fault.
    assert np.abs(their_image[0] - their_image[1]).max() > 1e-3
    assert np.abs(their_text[0] - their_text[1]).max() > 1e-3
    return np.abs(np.asarray(image) - their_image).max(), np.abs(np.asarray(text) - their_text).max()


@pytest.mark.parametrize("name", MODELS)
def test_their_weights_give_their_embeddings_here(name, tmp_path):
    theirs = live_model(MODELS[name])
    save_live(theirs, MODELS[name], tmp_path)
    pretrained = load_pretrained(tmp_path)
    image, text = difference(pretrained.model, theirs)
    assert image <= 2e-6
    assert text <= 2e-6
    for name in ("logit_scale", "logit_bias"):
        if getattr(theirs, name) is not None:
            assert getattr(pretrained.model, name) == getattr(theirs, name).item()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "siglip"])
def test_their_weights_go_back_unchanged(name, tmp_path):
    arrays = save_live(live_model(MODELS[name]), MODELS[name], tmp_path)
    export_open_clip(load_open_clip(tmp_path), tmp_path / "back")
    back = safetensors.numpy.load_file(tmp_path / "back" / "open_clip_model.safetensors")
    # The position of the class token has been added to it.
    table = arrays["visual.positional_embedding"]
    arrays["visual.class_embedding"] = arrays["visual.class_embedding"] + table[0]
    table[0] = 0
    plain = {key.removeprefix("text."): array for key, array in arrays.items()}
    assert back.keys() == plain.keys()
    for key in back:
        np.testing.assert_array_equal(back[key], plain[key], err_msg=key)


@pytest.mark.parametrize("text_name", ["plain", "text."])
def test_both_spellings_of_the_text_tower_load(text_name, tmp_path):
    theirs = live_model(CLIPA)
    arrays = save_live(theirs, CLIPA, tmp_path)
    tower = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    if text_name == "text.":
        arrays = {f"text.{name}" if name.startswith(tower) else name: array for name, array in arrays.items()}
    torch.save(
        {"state_dict": {f"module.{name}": torch.from_numpy(array) for name, array in arrays.items()}}, tmp_path / "x.pt"
    )
    model = load_open_clip(tmp_path / "x.pt", model=CLIPA).model
    np.testing.assert_array_equal(model.text.norm.scale, theirs.ln_final.weight.detach().numpy())


def test_pytorch_files_are_read_without_running_them(tmp_path):
    arrays = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    torch.save(arrays, tmp_path / "new.pt")
    torch.save({"state_dict": arrays, "epoch": 3}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.bin"):
        file = open_arrays(tmp_path / name)
        assert list(file) == ["a", "b"]
        assert (file.shape("a"), "c" in file) == ((2, 3), False)
        np.testing.assert_array_equal(file["a"], arrays["a"].numpy())
        np.testing.assert_array_equal(file["b"].astype(np.float32), [1.5, -2.0])

    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    torch.save({"a": Bomb()}, tmp_path / "bomb.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "new.pt").read_bytes()[:-200])
    (tmp_path / "text.pt").write_bytes(b"not a model")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"a": 3}, tmp_path / "number.pt")
    for name in ("bomb.pt", "bomb.bin", "cut.pt", "text.pt", "list.pt", "number.pt"):
        with pytest.raises(ValueError, match=name):
            open_arrays(tmp_path / name)


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


TOWER = {"width": 48, "depth": 2, "heads": 12, "hidden": 179}
TEXT_TOWER = {"context_length": 8, "vocab_size": 64, "width": 24, "depth": 2, "heads": 3, "hidden": 50}
OURS = {
    "clipa": CLIPConfig(
        embed=24, vision=VisionConfig(image_size=28, patch_size=7, **TOWER), text=TextConfig(**TEXT_TOWER)
    ),
    "layer scale, two kinds of GELU, an end token, no text projection": CLIPConfig(
        embed=24,
        vision=VisionConfig(
            image_size=28,
            patch_size=7,
            **TOWER,
            position="sincos2d_mae",
            pool="first",
            input_norm=True,
            layer_scale=0.3,
            activation="gelu",
        ),
        text=TextConfig(
            **TEXT_TOWER, pool="end", end_id=7, causal=True, layer_scale=0.2, norm_eps=1e-3, projection="none"
        ),
    ),
    "quick": CLIPConfig(
        embed=24,
        vision=VisionConfig(
            image_size=28, patch_size=7, **TOWER, position="learned", pool="norm_mean", activation="gelu_quick"
        ),
        text=TextConfig(**TEXT_TOWER, activation="gelu_quick", projection="linear_bias"),
    ),
    "siglip": CLIPConfig(
        embed=48,
        init_logit_bias=-10.0,
        vision=VisionConfig(
            image_size=28,
            patch_size=7,
            **TOWER,
            position="learned",
            class_token=False,
            pool="attention",
            patch_bias=True,
            activation="gelu",
            projection="none",
        ),
        text=TextConfig(**TEXT_TOWER, projection="linear_bias"),
    ),
}


def perturbed(config):
    """A model whose arrays are all noise, norms, biases and scales included."""
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32) for x in leaves])


@pytest.mark.parametrize("name", OURS)
def test_our_weights_give_our_embeddings_there(name, tmp_path, monkeypatch):
    config = OURS[name]
    monkeypatch.setitem(open_clip_config._TIMM_SIZES, "base", (48, 2, 179))
    monkeypatch.setitem(open_clip_config._TIMM_SIDES, ("base", 7), (28,))
    tokenizer = train_tokenizer(["a red dog runs", "two blue dogs", "A cat; the cat"] * 3, vocab_size=64)
    ours = Pretrained(perturbed(config), config, Preprocess(28, "squash", "bilinear"), tokenizer)
    export_open_clip(ours, tmp_path)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = np.random.default_rng(2).integers(0, 256, (41, 30, 3)).astype(np.uint8)
    seen = transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    expected = eval_image(file.getvalue(), 28, resize="squash", interpolation="bilinear", max_pixels=10**6)
    expected = normalize_pixels(scale_pixels(jnp.asarray(expected)), config.vision)
    np.testing.assert_allclose(seen, expected, atol=1e-6)

    differences = compare_to_open_clip(ours, tmp_path)
    assert max(differences["image"].largest, differences["text"].largest) <= 2e-6

    back = load_pretrained(tmp_path)
    assert (back.config, back.preprocess) == (config, ours.preprocess)
    jax.tree.map(np.testing.assert_array_equal, back.model, ours.model)


@pytest.mark.parametrize("name", ["clipa", "clipa as trained", "openai"])
def test_another_size_is_theirs(name, tmp_path):
    theirs = live_model(MODELS[name])
    save_live(theirs, MODELS[name], tmp_path)
    moved = load_pretrained(tmp_path, image_size=42, context_length=13)
    larger = {"force_image_size": 42, "force_context_length": 13}
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", **larger).eval()
    assert (moved.preprocess.image_size, moved.config) == (42, moved.model.config)
    assert max(difference(moved.model, theirs)) <= 2e-6


@pytest.mark.parametrize("kind", ["wordpiece", "wordpiece_sep", "stripped", "sentence_piece"])
def test_our_tokens_are_theirs(kind, tmp_path):
    captions = ["a red dog runs", "two blue dogs", "A cat; the cat, the cat, the cat", "", "zzz &amp; dog_s"]
    if kind == "sentence_piece":
        (tmp_path / "spiece.model").write_bytes(spiece())
        tokenizer = load_tokenizer(tmp_path / "spiece.model")
    else:
        tokenizer = train_tokenizer(
            captions * 3, vocab_size=64, kind="wordpiece" if kind == "wordpiece" else "wordpiece_sep"
        )
    if kind == "stripped":
        tokenizer = dataclasses.replace(tokenizer, end_id=tokenizer.pad_id)
    tokenizer = dataclasses.replace(tokenizer, repair=True)
    config = OURS["clipa"]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, pad_id=tokenizer.pad_id))
    ours = Pretrained(perturbed(config), config, Preprocess(28, "crop", "bicubic"), tokenizer)
    export_open_clip(ours, tmp_path)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    np.testing.assert_array_equal(theirs(captions).numpy(), tokenizer.encode_batch(captions, 8))
    np.testing.assert_array_equal(
        load_open_clip(tmp_path).tokenizer.encode_batch(captions, 8), theirs(captions).numpy()
    )
    # What its config says of a tokenizer is enough, as in a directory that this package has not written.
    (tmp_path / "clipa_tokenizer.json").unlink()
    loaded = load_open_clip(tmp_path)
    np.testing.assert_array_equal(loaded.tokenizer.encode_batch(captions, 8), theirs(captions).numpy())


def test_named_configs_are_theirs():
    """Every name of open_clip's that has this form describes the model that open_clip makes of it."""
    defaults = dataclasses.asdict(open_clip.CLIPVisionCfg()), dataclasses.asdict(open_clip.CLIPTextCfg())
    known = [name for name in open_clip.list_models() if _NAME.fullmatch(name)]
    assert len(known) >= 20
    for name in known:
        theirs, ours = open_clip.get_model_config(name), named_config(name)["model_cfg"]
        for part, default in zip(("vision_cfg", "text_cfg"), defaults, strict=True):
            assert default | ours.pop(part) == default | theirs.pop(part), name
        assert ours == theirs, name
