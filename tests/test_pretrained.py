"""A loaded model in a few lines: pictures and texts as they come, embeddings as arrays."""

import dataclasses
import io
import pickle

import jax
import numpy as np
import pytest
from helpers import jpeg
from hugging_face_files import CLIP_FORM, SIGLIP_FORM, tiny_pretrained, write_byte_pair
from PIL import Image

from clipa_eqx import load_pretrained
from clipa_eqx.config import EvalConfig
from clipa_eqx.data import ImageError
from clipa_eqx.evaluation import embed_images, embed_texts, make_protocol
from clipa_eqx.interop import (
    export_hugging_face,
    export_open_clip,
    move_pretrained,
    Preprocess,
    save_pretrained,
)


TEXTS = ["dog run", "the dog's", "", "dog run dog run dog run dog run dog run"]
SAVE = {"run": save_pretrained, "open_clip": export_open_clip, "hugging_face": export_hugging_face}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny_pretrained(CLIP_FORM, write_byte_pair(tmp_path_factory.mktemp("vocabulary")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("pictures") / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number, ["red", "green", "blue", "white"][number % 4], "left", size=40 + number))
    return paths


class Files(list):
    """Paths as evaluation reads a set."""

    key = property(lambda self: str)

    def read(self, index):
        return self[index].read_bytes()


@pytest.mark.parametrize("form", SAVE)
def test_every_form_embeds_as_its_evaluation_does(form, start, pictures, tmp_path):
    SAVE[form](start, tmp_path / "saved")
    loaded = load_pretrained(tmp_path / "saved")
    assert loaded.preprocess == start.preprocess
    np.testing.assert_array_equal(loaded.tokenizer(TEXTS), start.tokenizer(TEXTS))
    images, texts = loaded.embed_images(pictures, batch_size=2), loaded.embed_texts(TEXTS)
    settings = EvalConfig(resize=start.preprocess.resize, interpolation=start.preprocess.interpolation)
    protocol = make_protocol(settings, loaded.model)
    np.testing.assert_allclose(images, embed_images(loaded.model, Files(pictures), protocol).embeds, atol=1e-6)
    np.testing.assert_allclose(texts, embed_texts(loaded.model, TEXTS, loaded.found_tokenizer, protocol), atol=1e-6)


def test_embeddings_are_those_of_the_towers_on_the_prepared_inputs(start, pictures):
    pixels, tokens = np.stack([start.preprocess(path) for path in pictures]), start.tokenizer(TEXTS)
    images, texts = start.embed_images(pictures), start.embed_texts(TEXTS)
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(
        images, jax.jit(lambda model, x: jax.vmap(model.encode_image)(x))(start.model, pixels), atol=1e-6
    )
    np.testing.assert_allclose(
        texts, jax.jit(lambda model, x: jax.vmap(model.encode_text)(x))(start.model, tokens), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(start.embed_images(iter(pictures), batch_size=2), images, atol=1e-6)
    np.testing.assert_allclose(start.embed_texts(iter(TEXTS), batch_size=3), texts, atol=1e-6)
    np.testing.assert_allclose(start.embed_images(pictures[1]), images[1:2], atol=1e-6)
    np.testing.assert_allclose(start.embed_texts(TEXTS[1]), texts[1:2], atol=1e-6)


def test_a_picture_is_the_same_opened_as_bytes_and_by_path(start, pictures):
    prepare = start.preprocess
    path = pictures[0]
    expected = prepare(path)
    assert expected.shape == (24, 24, 3)
    assert expected.dtype == np.float32
    for form in (str(path), path.read_bytes(), Image.open(path), Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(prepare(form), expected)
    vision = start.config.vision
    levels = expected * np.float32(vision.pixel_std) + np.float32(vision.pixel_mean)
    small = Image.open(path).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(255 * levels, np.asarray(small), atol=1e-3)


def test_an_opened_picture_is_turned_upright_and_left_as_it_is(start):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(jpeg(0, "red", "left"))).save(buffer, "JPEG", exif=exif)
    turned = Image.open(io.BytesIO(buffer.getvalue()))
    np.testing.assert_array_equal(start.preprocess(turned), start.preprocess(buffer.getvalue()))
    assert turned.getexif()[0x0112] == 6
    palette = Image.new("P", (30, 20))
    palette.info["transparency"] = 0
    start.preprocess(palette)
    assert (palette.mode, palette.info) == ("P", {"transparency": 0})


def test_token_ids_have_the_context_of_the_model(start):
    ids = start.tokenizer(TEXTS)
    assert (ids.shape, ids.dtype) == ((4, 9), np.int32)
    np.testing.assert_array_equal(ids, start.found_tokenizer.encode_batch(TEXTS, 9))
    np.testing.assert_array_equal(start.tokenizer("dog run"), ids[:1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(start.tokenizer))(TEXTS), ids)  # noqa: S301
    moved = move_pretrained(start, image_size=32, context_length=5)
    assert moved.tokenizer(TEXTS).shape == (4, 5)
    assert moved.preprocess(Image.new("RGB", (50, 40))).shape == (32, 32, 3)
    assert moved.embed_texts(TEXTS).shape == (4, 12)


def test_siglip_form_embeds_too(start, tmp_path):
    siglip = tiny_pretrained(SIGLIP_FORM, write_byte_pair(tmp_path), resize="squash")
    assert siglip.embed_images(Image.new("RGB", (50, 20), "red")).shape == (1, 16)
    assert siglip.embed_texts("dog").shape == (1, 16)


def test_what_the_weights_do_not_say_is_asked_for_when_it_is_used(start, pictures):
    bare = dataclasses.replace(start, found_preprocess=None, found_tokenizer=None)
    assert move_pretrained(bare, image_size=32).config.vision.image_size == 32
    for use in (lambda: bare.preprocess(pictures[0]), lambda: bare.embed_images(pictures)):
        with pytest.raises(ValueError, match=r"how pictures are resized.*found_preprocess=Preprocess\(24"):
            use()
    for use in (lambda: bare.tokenizer("dog"), lambda: bare.embed_texts("dog")):
        with pytest.raises(ValueError, match=r"without a tokenizer.*found_tokenizer=load_tokenizer"):
            use()
    told = dataclasses.replace(bare, found_preprocess=Preprocess(24, "crop", "bicubic"))
    np.testing.assert_array_equal(told.embed_images(pictures), start.embed_images(pictures))


def test_faults_say_which_picture_and_why(start, pictures, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(pictures[0].read_bytes()[:200])
    for images in (cut, [pictures[0], str(cut)]):
        with pytest.raises(ImageError, match=r"The picture .*cut\.jpg cannot be used: "):
            start.embed_images(images)
    with pytest.raises(ImageError, match=r"The picture cannot be used: not a picture"):
        start.preprocess(b"no picture")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        start.preprocess(tmp_path / "none.jpg")
    for nothing in (start.embed_images, start.embed_texts):
        with pytest.raises(ValueError, match="nothing to embed"):
            nothing([])
        with pytest.raises(ValueError, match="batch_size"):
            nothing(["dog"], batch_size=0)
