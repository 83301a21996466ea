"""open_clip's configs and directories without open_clip: both directions, refusals, damaged files, memory."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from clipa_eqx.config import CLIPConfig, IMAGENET_MEAN, OPENAI_MEAN, TextConfig, VisionConfig
from clipa_eqx.data import train_tokenizer
from clipa_eqx.interop import (
    export_open_clip,
    load_open_clip,
    load_pretrained,
    open_arrays,
    Preprocess,
    Pretrained,
    save_pretrained,
)
from clipa_eqx.interop._open_clip_config import read_model_cfg, write_model_cfg
from clipa_eqx.interop._open_clip_names import named_config
from clipa_eqx.models import make_clip, presets


SMALL = CLIPConfig(
    embed=24,
    vision=VisionConfig(image_size=28, patch_size=7, width=32, depth=2, heads=4, hidden=80),
    text=TextConfig(context_length=8, vocab_size=64, width=24, depth=2, heads=3, hidden=50),
)


def noise(config):
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.random(x.shape, np.float32)) for x in leaves])


def pretrained(config=SMALL, tokenizer=None):
    return Pretrained(noise(config), config, Preprocess(config.vision.image_size, "crop", "bilinear"), tokenizer)


@pytest.fixture
def nothing(tmp_path):
    """Weights of no model, for configs that need none."""
    safetensors.numpy.save_file({}, tmp_path / "nothing.safetensors")
    return open_arrays(tmp_path / "nothing.safetensors")


def vision(**fields):
    return dataclasses.replace(SMALL, vision=dataclasses.replace(SMALL.vision, **fields))


def text(**fields):
    return dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **fields))


@pytest.mark.parametrize("name", presets)
def test_presets_come_back_exactly(name, tmp_path):
    config = presets[name]
    heads = config.vision.heads, config.text.heads
    narrow, thin = ({"depth": 2, "width": 16 * count, "hidden": 8 * count} for count in heads)
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **narrow),
        text=dataclasses.replace(config.text, **thin, vocab_size=90, end_id=min(config.text.end_id, 89)),
    )
    ours = pretrained(config)
    export_open_clip(ours, tmp_path)
    back = load_pretrained(tmp_path)
    assert back.config == back.model.config == config
    assert back.preprocess == ours.preprocess
    jax.tree.map(np.testing.assert_array_equal, back.model, ours.model)


def test_full_size_configs_come_back(nothing):
    for config in presets.values():
        stored = dataclasses.replace(config.vision, position="frozen")
        back = read_model_cfg(write_model_cfg(config), nothing, "open_clip")
        expected = config if config.vision.position == "learned" else dataclasses.replace(config, vision=stored)
        statistics = {name: getattr(config.vision, name) for name in ("pixel_mean", "pixel_std")}
        assert dataclasses.replace(back, vision=dataclasses.replace(back.vision, **statistics)) == expected


def test_named_models_are_the_presets(nothing):
    """The released CLIPA models and OpenAI's: the towers of our presets, as open_clip computes them or as trained."""
    for preset, name in {
        "clipa-l14": "ViT-L-14-CLIPA",
        "clipa-h14": "ViT-H-14-CLIPA",
        "clipa-bigg14": "ViT-bigG-14-CLIPA",
        "openai-vit-b-32": "ViT-B-32-quickgelu",
        "openai-vit-l-14": "ViT-L-14-quickgelu",
        "laion-vit-h-14": "ViT-H-14",
    }.items():
        ours = presets[preset]
        theirs = read_model_cfg(named_config(name)["model_cfg"], nothing, "as_trained")
        # Converted weights store the table, and pixel statistics come with the preprocessing.
        same = {"position": "learned", "pixel_mean": OPENAI_MEAN, "pixel_std": OPENAI_MEAN}
        assert dataclasses.replace(theirs.vision, **same) == dataclasses.replace(ours.vision, **same)
        assert theirs.text == ours.text
        assert theirs.embed == ours.embed
    clipa = named_config("ViT-L-14-CLIPA-336")
    computed = read_model_cfg(clipa["model_cfg"], nothing, "open_clip")
    assert computed.vision.image_size == 336
    assert (computed.vision.activation, computed.vision.norm_eps) == ("gelu", 1e-5)
    assert (computed.text.activation, computed.text.norm_eps) == ("gelu", 1e-5)
    assert clipa["preprocess_cfg"]["mean"] == list(IMAGENET_MEAN)
    # OpenAI's and LAION's were trained in PyTorch: both names mean the same.
    plain = named_config("ViT-B-16")["model_cfg"]
    assert read_model_cfg(plain, nothing, "as_trained") == read_model_cfg(plain, nothing, "open_clip")


def test_configs_of_clipa_torch_are_read(nothing):
    """The spelling of CLIPA's own PyTorch code: version 1 pools with the class token, version 2 without."""
    base = {"embed_dim": 768, "vision_cfg": {"layers": 24, "width": 1024, "global_average_pool": True}}
    first = read_model_cfg({**base, "text_cfg": {"context_length": 32}}, nothing, "open_clip")
    assert (first.vision.pool, first.vision.input_norm, first.vision.activation) == ("mean_all", True, "gelu")
    assert (first.text.pool, first.text.end_id, first.text.causal) == ("end", 49407, True)
    vision_cfg = {**base["vision_cfg"], "ln_pre": False, "pool_style": "big_vision_gap", "gelu_approximate": "tanh"}
    text_cfg = {"bert_tokenizer": True, "pool_style": "big_vision_last", "attention_mask": False, "vocab_path": "x"}
    second = read_model_cfg({**base, "vision_cfg": vision_cfg, "text_cfg": text_cfg}, nothing, "open_clip")
    assert (second.vision.pool, second.vision.input_norm, second.vision.activation) == ("mean", False, "gelu_tanh")
    assert (second.text.pool, second.text.causal, second.text.activation) == ("last", False, "gelu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multimodal_cfg": {}}, "multimodal_cfg"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg attentional_pool=True"),
        ({"vision_cfg": {"qk_norm": True}}, "vision_cfg qk_norm=True"),
        ({"vision_cfg": {"pool_type": "none"}}, "pool_type='none'"),
        ({"vision_cfg": {"pos_embed_type": "rope"}}, "pos_embed_type='rope'"),
        ({"vision_cfg": {"image_size": [224, 336]}}, "not square"),
        ({"vision_cfg": {"image_size": "224"}}, "image_size.* cannot be '224'"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "timm's convnext_base"),
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}}, "no image tower"),
        ({"vision_cfg": 3}, "vision_cfg.* cannot be 3"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text_cfg hf_model_name='roberta-base'"),
        ({"text_cfg": {"embed_cls": True}}, "text_cfg embed_cls=True"),
        ({"text_cfg": {"pool_type": "first"}}, "pool_type='first'"),
        ({"text_cfg": {"act_kwargs": {"approximate": "x"}}}, "approximate='x'"),
        ({"text_cfg": {"norm_kwargs": {"bias": True}}}, "norm_kwargs bias=True"),
        ({"quick_gelu": True, "text_cfg": {"act_kwargs": {"approximate": "tanh"}}}, "quick_gelu=True"),
        ({"embed_dim": None}, "needs embed_dim"),
    ],
)
def test_what_this_package_lacks_is_refused_by_name(change, message, nothing):
    with pytest.raises(ValueError, match=message):
        read_model_cfg({"embed_dim": 32, "vision_cfg": {}, "text_cfg": {}, **change}, nothing, "open_clip")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (text(pool="mean_real"), "text.pool='mean_real'"),
        (text(mask_padding=True, pool="last_real"), "text.pool='last_real', text.mask_padding=True"),
        (text(position="sincos1d"), "text.position='sincos1d'"),
        (vision(pool="mean_all"), "vision.pool='mean_all'"),
        (vision(class_token=False), "vision.class_token=False"),
        (vision(patch_bias=True), "vision.patch_bias=True"),
        (vision(projection="linear_bias"), "vision.projection='linear_bias'"),
        (vision(activation="gelu_quick"), "vision.activation='gelu_quick' beside text.activation='gelu_tanh'"),
        (vision(pool="attention"), "vision.pool='attention' at width=32, depth=2"),
    ],
)
def test_what_open_clip_lacks_is_refused_by_name(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_open_clip(pretrained(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_siglip_towers_take_timms_names():
    tower = VisionConfig(
        image_size=384,
        width=768,
        depth=12,
        heads=12,
        position="learned",
        class_token=False,
        pool="attention",
        patch_bias=True,
        activation="gelu",
        projection="none",
    )
    config = CLIPConfig(
        embed=768, vision=tower, text=TextConfig(width=768, projection="linear_bias"), init_logit_bias=-10.0
    )
    values = write_model_cfg(config)
    assert values["vision_cfg"]["timm_model_name"] == "vit_base_patch16_siglip_384"
    assert values["custom_text"]
    for change, message in (
        ({"image_size": 240}, "image_size=240"),
        ({"activation": "gelu_tanh"}, "activation='gelu_tanh' in timm's"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05 in timm's"),
        ({"class_token": True}, "class_token=True"),
    ):
        with pytest.raises(ValueError, match=message):
            write_model_cfg(dataclasses.replace(config, vision=dataclasses.replace(tower, **change)))


def test_tokens_follow_the_numerics(tmp_path):
    """open_clip cuts one piece off a long caption and puts 0 there; CLIPA keeps it (recipe notes of open_clip's)."""
    tokenizer = train_tokenizer(["a red dog and two blue cats"] * 3, vocab_size=64, kind="wordpiece_sep")
    export_open_clip(pretrained(SMALL, dataclasses.replace(tokenizer, end_id=tokenizer.pad_id)), tmp_path)
    (tmp_path / "clipa_tokenizer.json").unlink()  # a directory that somebody else wrote
    theirs, trained = (load_open_clip(tmp_path, numerics=kind).tokenizer for kind in ("open_clip", "as_trained"))
    caption = ["a red dog and two blue cats and a red dog"]
    assert theirs.encode_batch(caption, 8)[0, -1] == tokenizer.pad_id
    assert trained.encode_batch(caption, 8)[0, -1] not in (tokenizer.pad_id, tokenizer.end_id)
    np.testing.assert_array_equal(trained.encode_batch(caption, 8)[0, :7], theirs.encode_batch(caption, 8)[0, :7])


def test_numerics_are_recorded(tmp_path):
    export_open_clip(pretrained(), tmp_path)
    path = tmp_path / "open_clip_config.json"
    values = json.loads(path.read_text())
    for part in ("vision_cfg", "text_cfg"):
        del values["model_cfg"][part]["act_kwargs"], values["model_cfg"][part]["norm_kwargs"]
    path.write_text(json.dumps(values))
    for numerics, expected in (("open_clip", ("gelu", 1e-5)), ("as_trained", ("gelu_tanh", 1e-6))):
        config = load_pretrained(tmp_path, numerics=numerics).model.config
        assert (config.vision.activation, config.vision.norm_eps) == expected
        assert (config.text.activation, config.text.norm_eps) == expected


def test_a_stored_table_becomes_the_formula_only_where_it_is_equal(tmp_path):
    export_open_clip(pretrained(), tmp_path)
    assert load_open_clip(tmp_path).config.vision.position == "sincos2d"
    path = tmp_path / "open_clip_model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    table = arrays["visual.positional_embedding"]
    table[3, 5] = np.nextafter(table[3, 5], np.float32(9))
    safetensors.numpy.save_file(arrays, path)
    back = load_open_clip(tmp_path)
    assert back.config.vision.position == back.model.vision.config.position == "frozen"
    np.testing.assert_array_equal(back.model.vision.position, table[1:])


def test_directories_without_a_tokenizer_say_so_when_it_is_needed(tmp_path):
    export_open_clip(pretrained(), tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.found_tokenizer is None
    with pytest.raises(ValueError, match="without a tokenizer"):
        _ = loaded.tokenizer


def test_run_directories_come_back(tmp_path):
    tokenizer = train_tokenizer(["a red dog"] * 3, vocab_size=32)
    for name, given in (("with", tokenizer), ("without", None)):
        ours = pretrained(text(end_id=5), given)
        save_pretrained(ours, tmp_path / name)
        back = load_pretrained(tmp_path / name)
        assert (back.config, back.preprocess) == (ours.config, ours.preprocess)
        jax.tree.map(np.testing.assert_array_equal, back.model, ours.model)
        assert (back.found_tokenizer is None) == (given is None)
    assert load_pretrained(tmp_path / "with").tokenizer.tokens() == tokenizer.tokens()


def test_hub_names_are_downloaded(tmp_path, monkeypatch):
    export_open_clip(pretrained(), tmp_path)
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "kept")
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(name, *, allow_patterns):
            asked.append((name, allow_patterns))
            if "open_clip_pytorch_model.bin" in allow_patterns:
                (tmp_path / "kept").rename(tmp_path / "model.safetensors")
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert load_pretrained("hf-hub:org/name").config == SMALL
    # The second call asks for PyTorch files, because no others came.
    assert [name for name, _ in asked] == ["org/name", "org/name"]
    assert not any(pattern.endswith(".bin") for pattern in asked[0][1])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"clipa_eqx\[hub\]"):
        load_pretrained("hf-hub:org/name")


def test_damaged_directories_are_refused(tmp_path):
    export_open_clip(pretrained(), tmp_path)
    weights, config = tmp_path / "open_clip_model.safetensors", tmp_path / "open_clip_config.json"
    arrays, text_of = safetensors.numpy.load_file(weights), config.read_text()

    def refused(message, error=ValueError):
        with pytest.raises(error, match=message):
            load_pretrained(tmp_path)

    safetensors.numpy.save_file({k: v for k, v in arrays.items() if k != "visual.proj"}, weights)
    refused(r"missing visual\.proj \(vision projection\.weight\)")
    safetensors.numpy.save_file(arrays | {"visual.ln_pre.weight": np.ones(32, np.float32)}, weights)
    refused(r"unexpected visual\.ln_pre\.weight \(vision\)")
    safetensors.numpy.save_file(arrays | {"visual.proj": arrays["visual.proj"].T.copy()}, weights)
    refused(r"visual\.proj has shape \(24, 32\)")
    table = np.ones((50, 32), np.float32)
    safetensors.numpy.save_file(arrays | {"visual.positional_embedding": table}, weights)
    refused(r"visual\.positional_embedding has shape \(50, 32\).* move it by image_size and context_length")
    safetensors.numpy.save_file(arrays | {"visual.proj": arrays["visual.proj"].astype(np.int32)}, weights)
    refused("visual.proj for vision projection.weight is int32")
    weights.write_bytes(weights.read_bytes()[:-9])
    refused("not a whole safetensors file")
    weights.unlink()
    refused("holds no weights", FileNotFoundError)
    safetensors.numpy.save_file(arrays, weights)
    for damaged, message in (("{", "not a JSON file"), ("[" * 10**5, "not a JSON file"), ("[]", "with a model_cfg")):
        config.write_text(damaged)
        refused(message)
    for absurd in ('"layers": 9000000', '"vocab_size": 9000000', '"image_size": 9000000', '"context_length": 9000000'):
        changed = re.sub(absurd.split(":")[0] + r": \d+", absurd, text_of).replace('"patch_size": 7', '"patch_size": 1')
        config.write_text(changed)
        refused("do not fit the model|needs")
    config.write_text(text_of.replace('"width": 32', f'"width": {10**30}'))
    refused("width of an open_clip config cannot be 1000")
    config.write_text(text_of.replace('"shortest"', '"longest"'))
    refused("resize_mode='longest'")
    config.write_text(text_of.replace('"mean": [', '"mean": ["x",'))
    refused("mean of an open_clip config must be three numbers")
    config.unlink()
    refused("not a run directory", FileNotFoundError)
    with pytest.raises(ValueError, match="give model"):
        load_open_clip(weights)
    with pytest.raises(ValueError, match="none of open_clip's plain ViT models"):
        load_open_clip(weights, model="RN50")


_MEASURE = """
import re
import sys
import jax
from clipa_eqx.interop import load_pretrained

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

load_pretrained({small!r})
before = status("VmRSS")
model = jax.block_until_ready(load_pretrained({large!r}).model)
print(status("VmHWM") - before, "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("write", [export_open_clip, save_pretrained])
def test_loading_needs_little_more_memory_than_the_weights(write, tmp_path):
    wide = CLIPConfig(
        embed=64,
        vision=VisionConfig(image_size=32, width=512, depth=12, heads=8, hidden=2048),
        text=TextConfig(context_length=8, vocab_size=4096, width=256, depth=8, heads=4, hidden=1024),
    )
    sizes = {}
    for name, config in (("small", SMALL), ("large", wide)):
        write(pretrained(config), tmp_path / name)
        (file,) = (tmp_path / name).glob("*.safetensors")
        sizes[name] = file.stat().st_size
    code = _MEASURE.format(small=str(tmp_path / "small"), large=str(tmp_path / "large"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    grown, torch = done.stdout.split()
    grown = int(grown)
    assert torch == "False"
    assert sizes["large"] > 170e6
    assert 0.9 * sizes["large"] < grown < 1.2 * sizes["large"], grown / sizes["large"]
