"""Evaluators on a toy model whose score is known: it sees an image's mean colour and knows the words for colours."""

import dataclasses
import io
import json
import tarfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from PIL import Image

from clipa_eqx.config import CLIPConfig, EvalConfig, IMAGENET_MEAN, IMAGENET_STD, TextConfig, VisionConfig
from clipa_eqx.data import ClassificationSet, open_retrieval, train_tokenizer
from clipa_eqx.evaluation import (
    canonicalize,
    class_vectors,
    embed_images,
    embed_texts,
    evaluate,
    make_evaluators,
    make_protocol,
    retrieval,
    zero_shot,
)


COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
CONFIG = CLIPConfig(
    embed=3,
    vision=VisionConfig(image_size=8, patch_size=4, width=8, depth=1, heads=1, hidden=8),
    text=TextConfig(context_length=6, vocab_size=256, width=8, depth=1, heads=1, hidden=8),
)


TRACES = []


class Toy(eqx.Module):
    words: Float[Array, "vocab 3"]
    config: CLIPConfig = eqx.field(static=True)

    def encode_image(self, pixels):
        TRACES.append(pixels.shape)
        mean = pixels.mean((0, 1)) * jnp.asarray(IMAGENET_STD) + jnp.asarray(IMAGENET_MEAN)
        return _unit(mean - 0.5)

    def encode_text(self, tokens):
        return _unit(self.words[tokens].sum(0))


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _picture(color, size=(12, 9)):
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass
class Files:
    data: list

    def __len__(self):
        return len(self.data)

    def key(self, index):
        return f"image {index}"

    def image(self, index):
        return self.data[index]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"a photo of the {color} one" for color in COLORS] * 9, vocab_size=200)


@pytest.fixture(scope="module")
def toy(tokenizer):
    words = np.zeros((256, 3), np.float32)
    for word, color in COLORS.items():
        words[tokenizer.tokens().index(word)] = np.array(color) / 255 - 0.5
    return Toy(jnp.asarray(words), CONFIG)


def _protocol(toy, config=EvalConfig(), **sizes):
    return dataclasses.replace(make_protocol(config, toy), **sizes)


def _set(shown, labels, templates=()):
    names = tuple(COLORS)
    files = Files([_picture(color) if color else b"no picture" for color in shown])
    return ClassificationSet(names, templates, {}, np.array([names.index(label) for label in labels]), files)


def test_zero_shot_counts_what_is_right(toy, tokenizer):
    shown = ["red", "red", "green", "green", "blue", "blue", "blue", "", "red", "green"]
    labels = ["red", "red", "green", "blue", "blue", "blue", "green", "red", "red", "green"]
    images = _set(shown, labels, templates=("a photo of the {c} one", "{c}"))
    result = zero_shot(toy, images, tokenizer, _protocol(toy), unseen=[1, 3], batch_size=4)
    assert result["top1"] == pytest.approx(7 / 10)
    # Of four classes all but the unreadable image are among the first five.
    assert result["top5"] == pytest.approx(9 / 10)
    assert result["per_class"] == [pytest.approx(3 / 4), pytest.approx(2 / 3), pytest.approx(2 / 3), None]
    assert result["mean_per_class"] == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)
    assert result["top1_unseen"] == pytest.approx(2 / 3)
    assert (result["images"], result["classes"], result["unreadable"]) == (10, 4, 1)
    assert list(result["faults"]) == ["image 7"]
    assert result["protocol"]["templates"] == ("a photo of the {c} one", "{c}")
    json.dumps(result)


def test_broken_images_are_wrong_even_alone(toy, tokenizer):
    result = zero_shot(toy, _set(["", ""], ["red", "green"]), tokenizer, _protocol(toy))
    assert (result["top1"], result["top5"], result["unreadable"]) == (0.0, 0.0, 2)


def test_unseen_without_images_is_left_out(toy, tokenizer):
    images = _set(["red"], ["red"])
    assert "top1_unseen" not in zero_shot(toy, images, tokenizer, _protocol(toy), unseen=[2])
    with pytest.raises(ValueError, match="label 4; it must be one of 0 to 3"):
        zero_shot(toy, images, tokenizer, _protocol(toy), unseen=[4])


def test_a_broken_model_is_never_right(toy, tokenizer):
    broken = eqx.tree_at(lambda model: model.words, toy, toy.words * jnp.nan)
    assert zero_shot(broken, _set(["red"], ["red"]), tokenizer, _protocol(toy))["top5"] == 0.0


def test_class_vectors_are_unit_means_of_unit_vectors(toy, tokenizer):
    protocol = _protocol(toy).with_classes(("red", "blue"), ("{c}", "{c} {c} green"))
    vectors = class_vectors(toy, ("red", "blue"), tokenizer, protocol)
    unit = lambda x: x / np.linalg.norm(x)
    green = np.array([-0.5, 0.5, -0.5])
    for vector, color in zip(vectors, (np.array([0.5, -0.5, -0.5]), np.array([-0.5, -0.5, 0.5])), strict=True):
        np.testing.assert_allclose(vector, unit(unit(color) + unit(2 * color + green)), atol=1e-5)


def test_texts_and_images_keep_their_order_in_any_batch(toy, tokenizer):
    colors = list(COLORS) * 5
    texts = embed_texts(toy, colors, tokenizer, _protocol(toy), batch_size=8)
    images = embed_images(toy, _set(colors, colors), _protocol(toy), batch_size=100)
    expected = np.array([COLORS[color] for color in colors]) / 255 - 0.5
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(texts, expected, atol=1e-5)
    np.testing.assert_allclose(images.embeds, expected, atol=1e-5)
    assert images.readable.all()
    assert not images.faults


def test_one_compilation_serves_all_batches_and_all_weights(toy):
    images = _set(["red"] * 37, ["red"] * 37)
    TRACES.clear()
    for scale in (1, 2):
        other = eqx.tree_at(lambda model: model.words, toy, toy.words * scale)
        embed_images(other, images, _protocol(toy, image_size=6), batch_size=16)
    assert TRACES == [(6, 6, 3)]


def test_nothing_to_embed_is_an_error(toy, tokenizer):
    with pytest.raises(ValueError, match="nothing to embed"):
        embed_texts(toy, [], tokenizer, _protocol(toy))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embed_texts(toy, ["red"], tokenizer, _protocol(toy), batch_size=0)


def test_long_prompts_are_cut_as_the_protocol_says(toy, tokenizer):
    text = ["of the of the of the red"]
    norm = lambda config: np.linalg.norm(embed_texts(toy, text, tokenizer, _protocol(toy, config, context_length=3)))
    assert norm(EvalConfig(text_reduction="truncate")) == 0
    assert norm(EvalConfig(text_reduction="syntax")) == pytest.approx(1)


def test_canonical_prompts_lose_their_punctuation(toy, tokenizer):
    assert canonicalize("  A_photo,  of the 'Red-Hat'! ") == "a photo of the redhat"
    protocol = lambda flag: _protocol(toy, EvalConfig(canonicalize=flag), context_length=3)
    norm = lambda flag: np.linalg.norm(embed_texts(toy, ["... red"], tokenizer, protocol(flag)))
    assert norm(False) == 0
    assert norm(True) == pytest.approx(1)


def test_protocol_says_what_a_result_depends_on(toy):
    protocol = _protocol(toy).with_classes(("red", "blue"), ())
    assert protocol.templates == ("a photo of a {c}.",)
    assert protocol.precision == "float32"
    assert protocol != _protocol(toy).with_classes(("blue", "red"), ())
    with jax.default_matmul_precision("highest"):
        assert _protocol(toy).precision == "float32, products highest"
    with pytest.raises(ValueError, match="has no {c}"):
        _protocol(toy).with_classes(("red",), ("a photo",))


def _write_retrieval(folder, rows):
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (image, captions) in enumerate(rows):
            for name, data in ((f"{number:03}.png", image), (f"{number:03}.txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_retrieval_counts_both_directions(toy, tokenizer, tmp_path):
    rows = [
        (_picture("red"), ["the red one", "green"]),  # one of two captions leads back
        (_picture("green"), ["a red yellow photo"]),  # neither direction at depth 1
        (_picture("blue"), ["blue", "a blue photo", "the blue one"]),
        (b"no picture", ["yellow"]),  # counts as wrong in both
    ]
    _write_retrieval(tmp_path, rows)
    result = retrieval(toy, open_retrieval(tmp_path), tokenizer, _protocol(toy), batch_size=8)
    assert (result["images"], result["captions"], result["unreadable"]) == (4, 7, 1)
    assert result["image_to_text_recall@1"] == pytest.approx(2 / 4)
    assert result["image_to_text_recall@10"] == pytest.approx(3 / 4)
    assert result["text_to_image_recall@1"] == pytest.approx(4 / 7)
    assert result["text_to_image_recall@5"] == pytest.approx(6 / 7)
    assert len(result["faults"]) == 1
    json.dumps(result)


def test_evaluators_measure_the_sets_of_a_config(toy, tokenizer, tmp_path):
    for color, shown in (("blue", "blue"), ("green", "red"), ("red", "red")):
        (tmp_path / "classes" / color).mkdir(parents=True)
        (tmp_path / "classes" / color / "0.png").write_bytes(_picture(shown))
    unseen = tmp_path / "classes" / "unseen.txt"
    unseen.write_text("1\n2\n")
    _write_retrieval(tmp_path / "pairs", [(_picture(color), [color]) for color in COLORS])
    config = EvalConfig(classification=str(tmp_path / "classes"), retrieval=str(tmp_path / "pairs"))

    results = evaluate(toy, tokenizer, config)
    assert results["classification"]["top1"] == pytest.approx(2 / 3)
    assert results["classification"]["top1_unseen"] == pytest.approx(1 / 2)
    assert results["classification"]["protocol"]["image_size"] == 8
    assert results["retrieval"]["text_to_image_recall@1"] == 1.0

    scalars = {
        name: value for evaluator in make_evaluators(config, tokenizer) for name, value in evaluator(toy).items()
    }
    assert scalars.keys() == {"top1", "top5", "mean_per_class", "top1_unseen"} | {
        f"{way}_recall@{depth}" for way in ("image_to_text", "text_to_image") for depth in (1, 5, 10)
    }
    assert scalars["top1"] == results["classification"]["top1"]

    unseen.write_text("blue\n")
    with pytest.raises(ValueError, match="holds 'blue'; it must hold one label per line"):
        make_evaluators(config, tokenizer)


def test_no_sets_no_evaluators(tokenizer, tmp_path):
    assert make_evaluators(EvalConfig(), tokenizer) == ()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_evaluators(EvalConfig(classification=str(tmp_path / "nowhere")), tokenizer)
