"""Hugging Face directories without torch: exact round trips, what is refused, damaged and hostile files."""

import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hugging_face_files import (
    assert_equal_models,
    CLIP_FORM,
    SIGLIP_FORM,
    tiny_pretrained,
    VOCAB_SIZE,
    write_byte_pair,
)

from clipa_eqx.interop import export_hugging_face, load_hugging_face
from clipa_eqx.interop._hugging_face import is_hugging_face
from clipa_eqx.interop._hugging_face_config import read_config
from clipa_eqx.models import presets


@pytest.fixture(scope="module")
def byte_pair(tmp_path_factory):
    return write_byte_pair(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, byte_pair):
    """One exported model of each form, not to be written to."""
    directories = {}
    for name, config in (("clip", CLIP_FORM), ("siglip", SIGLIP_FORM)):
        directories[name] = tmp_path_factory.mktemp(name)
        export_hugging_face(tiny_pretrained(config, byte_pair), directories[name])
    return directories


@pytest.fixture
def directory(tmp_path, exported):
    """A copy of the exported model of OpenAI's form."""
    for file in exported["clip"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def narrowed(config):
    """A preset at an eighth of its width, one block deep, with the small vocabulary."""
    fewer = lambda tower: {"width": tower.width // 8, "hidden": tower.hidden // 8, "depth": 1}
    ids = {"vocab_size": VOCAB_SIZE, "end_id": VOCAB_SIZE - 1 if config.text.end_id >= 0 else -1}
    return dataclasses.replace(
        config,
        embed=config.embed // 8,
        vision=dataclasses.replace(config.vision, **fewer(config.vision)),
        text=dataclasses.replace(config.text, **fewer(config.text), **ids),
    )


EXPORTABLE = {"openai-vit-b-32", "openai-vit-b-16", "openai-vit-l-14", "laion-vit-h-14"}


@pytest.mark.parametrize("name", presets)
def test_presets_return_unchanged_or_are_refused(tmp_path, byte_pair, name):
    pretrained = tiny_pretrained(narrowed(presets[name]), byte_pair)
    if name not in EXPORTABLE:
        with pytest.raises(ValueError, match=r"vision\.input_norm=False, where it has True.*text\.causal=False"):
            export_hugging_face(pretrained, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    export_hugging_face(pretrained, tmp_path / "out")
    again = load_hugging_face(tmp_path / "out")
    assert_equal_models(again.model, pretrained.model)
    assert again.preprocess == pretrained.preprocess
    assert (
        again.tokenizer.encode_batch(["a dog!"], 6).tolist()
        == pretrained.tokenizer.encode_batch(["a dog!"], 6).tolist()
    )


def test_sigmoid_model_returns_unchanged(exported, byte_pair):
    assert is_hugging_face(exported["siglip"])
    assert_equal_models(load_hugging_face(exported["siglip"]).model, tiny_pretrained(SIGLIP_FORM, byte_pair).model)


@pytest.mark.parametrize("form", ["clip", "siglip"])
def test_export_names_each_field_in_the_way(tmp_path, byte_pair, form):
    config = {"clip": CLIP_FORM, "siglip": SIGLIP_FORM}[form]
    changes = {
        "clip": [
            ("vision", {"pool": "mean"}, "vision.pool='mean'"),
            ("vision", {"input_norm": False}, "vision.input_norm=False"),
            ("vision", {"patch_bias": True}, "vision.patch_bias=True"),
            ("vision", {"layer_scale": 0.1}, "vision.layer_scale=0.1"),
            ("vision", {"projection": "linear_bias"}, "vision.projection='linear_bias'"),
            ("text", {"causal": False}, "text.causal=False"),
            ("text", {"pool": "last"}, "text.pool='last'"),
            ("text", {"mask_padding": True}, "text.mask_padding=True"),
            ("text", {"position": "sincos1d"}, "text.position='sincos1d'"),
            ("text", {"end_id": 2}, "text.end_id=2"),
        ],
        "siglip": [
            ("vision", {"class_token": True}, "vision.class_token=True"),
            ("vision", {"pool": "norm_mean"}, "vision.pool='norm_mean'"),
            ("text", {"mask_padding": True}, "text.mask_padding=True"),
            ("text", {"projection": "linear"}, "text.projection='linear'"),
        ],
    }
    for tower, fields, named in changes[form]:
        changed = dataclasses.replace(config, **{tower: dataclasses.replace(getattr(config, tower), **fields)})
        with pytest.raises(ValueError, match="cannot express this model") as caught:
            export_hugging_face(tiny_pretrained(changed, byte_pair), tmp_path / "out")
        assert named in str(caught.value)
        assert not (tmp_path / "out").exists()


def change_json(path, **fields):
    values = json.loads(path.read_text())
    for name, value in fields.items():
        place = values
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(values))


def test_fields_left_out_are_those_of_transformers(directory):
    values = {"model_type": "clip", "text_config_dict": {}, "vision_config": {"patch_size": 16}}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="do not fit|belong to another config"):
        load_hugging_face(directory)
    assert read_config(values) == dataclasses.replace(presets["openai-vit-b-16"], init_logit_scale=2.6592)
    siglip = read_config({"model_type": "siglip", "text_config": None})
    assert (siglip.vision.patch_size, siglip.text.context_length, siglip.text.pad_id) == (16, 64, 1)
    assert (siglip.init_logit_scale, siglip.init_logit_bias) == (math.log(10), -10)


def test_section_under_its_second_name_counts(directory):
    section = json.loads((directory / "config.json").read_text())["text_config"]
    change_json(directory / "config.json", text_config_dict=section, text_config={"hidden_size": 1024})
    assert load_hugging_face(directory).config.text.width == 8


def test_untrue_end_token_means_the_highest_id(directory):
    change_json(directory / "config.json", text_config__eos_token_id=2)
    assert load_hugging_face(directory).config.text.end_id == VOCAB_SIZE - 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": 24, "crop_size": 24}, ("crop", "bicubic")),
        ({"size": {"height": 24, "width": 24}, "crop_size": None, "resample": 2}, ("squash", "bilinear")),
        ({"size": {"height": 24, "width": 24}, "do_center_crop": None}, ("squash", "bicubic")),
        ({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, ("crop", "bicubic")),
    ],
)
def test_resize_rules(directory, fields, expected):
    change_json(directory / "preprocessor_config.json", **fields)
    preprocess = load_hugging_face(directory).preprocess
    assert (preprocess.resize, preprocess.interpolation) == expected


def test_processor_config_is_read_where_the_older_file_lacks(directory):
    values = json.loads((directory / "preprocessor_config.json").read_text()) | {"image_mean": [0.25, 0.5, 0.75]}
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert load_hugging_face(directory).config.vision.pixel_mean == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"model_type": "blip"}, "model_type='blip' is not supported"),
        ("config.json", {"vision_config__hidden_act": "relu"}, r"vision_config\.hidden_act='relu'"),
        ("config.json", {"vision_config__num_channels": 4}, "num_channels=4"),
        ("config.json", {"vision_config__image_size": [24, 32]}, "image_size must be a whole number"),
        ("config.json", {"text_config": [1]}, "text_config must be a JSON object"),
        ("config.json", {"text_config__layer_norm_eps": "small"}, "layer_norm_eps must be a number"),
        ("config.json", {"text_config__hidden_size": True}, "hidden_size must be a whole number"),
        ("config.json", {"projection_dim": "12"}, "projection_dim must be a whole number"),
        ("config.json", {"text_config__num_hidden_layers": 10**12}, "1000000000000 blocks, but"),
        ("config.json", {"vision_config__hidden_size": 2**40}, "belong to another config"),
        ("config.json", {"text_config__vocab_size": 2**40}, "belong to another config"),
        ("config.json", {"vision_config__hidden_size": 32}, "belong to another config"),
        ("config.json", {"vision_config__num_hidden_layers": 1}, "unexpected vision_model.encoder.layers.1"),
        ("config.json", {"vision_config__num_hidden_layers": 3}, "missing vision_model.encoder.layers.2"),
        ("config.json", {"vision_config__patch_size": 5}, "the weights belong to another config"),
        ("preprocessor_config.json", {"resample": 1}, "resample=1"),
        ("preprocessor_config.json", {"image_processor": 3}, "image_processor must be a JSON object"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale=False"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ("preprocessor_config.json", {"do_center_crop": False}, "shortest_edge"),
        ("preprocessor_config.json", {"crop_size": 16}, "takes 24 x 24 px"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 28}}, "takes 24 x 24 px"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ("preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}, "pixel_std"),
    ],
)
def test_unsupported_or_broken_fields_are_named(directory, file, fields, message):
    change_json(directory / file, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        load_hugging_face(directory)
    assert str(directory) in str(caught.value)


def test_sigmoid_forms_without_an_embedding_are_named(tmp_path, exported):
    for file in exported["siglip"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_json(tmp_path / "config.json", vision_config__vision_use_head=False)
    with pytest.raises(ValueError, match="vision_use_head"):
        load_hugging_face(tmp_path)
    change_json(tmp_path / "config.json", vision_config__vision_use_head=True, text_config__projection_size=8)
    with pytest.raises(ValueError, match="do not meet in one space"):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files_are_named(directory, name):
    content = (directory / name).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"\xff\xfe[1", b"[" * 100_000):
        (directory / name).write_bytes(broken)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_hugging_face(directory)
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load_hugging_face(directory)


def test_a_model_without_a_tokenizer_passes_through(tmp_path, directory):
    (directory / "clipa_tokenizer.json").unlink()
    (directory / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    pretrained = load_hugging_face(directory)
    assert pretrained.found_tokenizer is None
    export_hugging_face(pretrained, tmp_path / "again")
    assert not [*(tmp_path / "again").glob("*tokenizer*")]
    assert_equal_models(load_hugging_face(tmp_path / "again").model, pretrained.model)


def split_in_two(directory):
    arrays = safetensors.numpy.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    places = {}
    for number in (0, 1):
        part = dict(sorted(arrays.items())[number::2])
        safetensors.numpy.save_file(part, directory / f"part-{number}.safetensors")
        places |= dict.fromkeys(part, f"part-{number}.safetensors")
    return places


def test_shards(directory):
    whole = load_hugging_face(directory).model
    places = split_in_two(directory)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_equal_models(load_hugging_face(directory).model, whole)
    faults = [
        ("{}", "does not say which array"),
        ('{"weight_map": {"logit_scale": ["part-0.safetensors"]}}', "does not say which array"),
        (json.dumps({"weight_map": places | {"logit_scale": "../part-0.safetensors"}}), "no file beside it"),
        (json.dumps({"weight_map": places | {"logit_scale": 3}}), "no file beside it"),
        (json.dumps({"weight_map": places | {"extra": "part-0.safetensors"}}), "expects extra in part-0"),
    ]
    for text, message in faults:
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_hugging_face(directory)
    index.write_text(json.dumps({"weight_map": places}))
    (directory / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="part-1"):
        load_hugging_face(directory)


def test_arrays_that_do_not_fit_are_named(directory):
    path = directory / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    name = "text_model.encoder.layers.1.self_attn.v_proj.weight"
    for changed, message in [
        ({name: arrays[name][:-1]}, "v_proj.weight has shape"),
        ({name: arrays[name].astype(np.int32)}, "int32"),
        ({"text_model.extra": arrays[name]}, "unexpected text_model.extra"),
    ]:
        safetensors.numpy.save_file(arrays | changed, path)
        with pytest.raises(ValueError, match=message):
            load_hugging_face(directory)
    arrays.pop(name)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=f"missing {name}"):
        load_hugging_face(directory)


def test_other_directories_are_not_taken(tmp_path):
    assert not is_hugging_face(tmp_path)
    assert not is_hugging_face(tmp_path / "none")
    for text in ("[", "[" * 100_000, "[]", '{"model": {}, "stages": []}', "\udcff"):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        assert not is_hugging_face(tmp_path)
