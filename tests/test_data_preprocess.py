"""Pictures and captions are prepared as the references do it: torchvision's resize and crop, open_clip's cleaning."""

import io
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clipa_eqx.data import load_tokenizer
from clipa_eqx.data.image._image import eval_image
from clipa_eqx.data.text._cleaning import repair_text


KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def torchvision_crop(image, size, kernel):
    """Resize(size), which rounds the longer side down, and CenterCrop(size), which rounds its corner to even."""
    width, height = image.size
    short, long = size, int(size * max(image.size) / min(image.size))
    image = image.resize((short, long) if width <= height else (long, short), kernel)
    left, top = int(round((image.width - size) / 2.0)), int(round((image.height - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def pictures():
    """Smooth and noisy ones of common and odd sizes; the noise is the worst case of any resize."""
    rng = np.random.default_rng(0)
    for width, height in ((640, 480), (480, 640), (333, 500), (224, 225), (500, 101), (100, 77), (37, 200)):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8))
        yield coarse.resize((width, height), Image.Resampling.BICUBIC)
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("interpolation", KERNELS)
def test_evaluation_pictures_equal_torchvision_s(interpolation):
    """The same picture but for the order of rounding: below 0.5 of 255 levels on average, measured 0.4 at most."""
    kernel = KERNELS[interpolation]
    for image in pictures():
        stream = io.BytesIO()
        image.save(stream, "PNG")
        for size in (84, 224):
            options = {"interpolation": interpolation, "max_pixels": 10**8}
            found = eval_image(stream.getvalue(), size, resize="crop", **options)
            expected = np.asarray(torchvision_crop(image, size, kernel))
            assert np.abs(found.astype(int) - expected).mean() < 0.5
            squashed = eval_image(stream.getvalue(), size, resize="squash", **options)
            np.testing.assert_array_equal(squashed, np.asarray(image.resize((size, size), kernel)))


def test_captions_are_repaired_before_they_are_split():
    assert repair_text("plain words, 100%") == "plain words, 100%"
    assert repair_text(" two\t\nlines  ") == "two lines"
    assert repair_text("salt &amp; pepper &lt;3") == "salt & pepper <3"
    assert repair_text("&amp;eacute; &#233; &#xE9; &foo;") == "é é é &foo;"
    assert repair_text("cafe\u0301") == "café"
    assert repair_text("a\u3000b\xa0c&nbsp;d") == "a b c d"
    assert repair_text("\u201ccurly\u201d doesn\u2019t") == '"curly" doesn\'t'
    assert repair_text("") == repair_text("&nbsp; ") == ""


@pytest.fixture
def byte_symbols(tmp_path):
    """A byte-pair vocabulary without a merge, so that ids spell out the bytes."""
    symbols = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 512)]][:256]
    pieces = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return tmp_path


def words(tokenizer, text):
    """The bytes of each word, as the ids spell them."""
    pieces = tokenizer.tokens()
    ids = tokenizer.encode_batch([text], 64)[0].tolist()
    return "".join(pieces[index] for index in ids[1 : ids.index(tokenizer.end_id)]).split("</w>")[:-1]


def test_byte_pairs_repair_their_text_and_lower_case_as_python_does(byte_symbols):
    tokenizer = load_tokenizer(byte_symbols)
    assert tokenizer.repair
    assert words(tokenizer, "Salt &amp;amp; PEPPER") == ["salt", "&", "pepper"]
    spelled = lambda word: words(tokenizer, unicodedata.normalize("NFC", word))
    assert spelled("ΟΔΟΣ") == spelled("οδος") != spelled("οδοσ")
    # A long s counts as an s after an apostrophe, a combining iota as nothing: so does Python's `regex`.
    assert len(words(tokenizer, "it'\u017fa")) == 3
    assert words(tokenizer, "a\u0345b") == words(tokenizer, "a b")


def test_repair_can_be_chosen(byte_symbols, tmp_path):
    (byte_symbols / "clipa_tokenizer.json").write_text('{"repair": false}')
    tokenizer = load_tokenizer(byte_symbols)
    assert not tokenizer.repair
    assert words(tokenizer, "a &amp; b") == ["a", "&", "amp", ";", "b"]
    tokenizer.save(tmp_path / "saved")
    assert not load_tokenizer(tmp_path / "saved").repair
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n&\namp\n;\n")
    assert load_tokenizer(tmp_path / "vocab.txt").encode_batch(["a&amp;a"], 6).tolist() == [[2, 4, 5, 6, 7, 4]]
    settings = {"kind": "wordpiece_sep", "end_id": 0, "repair": True}
    (byte_symbols / "clipa_tokenizer.json").write_text(json.dumps(settings))
    # open_clip's form of CLIPA's captions: entities resolved, the separator's slot padded.
    assert load_tokenizer(tmp_path / "vocab.txt").encode_batch(["a&amp;a"], 6).tolist() == [[2, 4, 5, 4, 0, 0]]
    assert load_tokenizer(tmp_path / "vocab.txt").encode_batch(["a&amp;a a"], 4).tolist() == [[2, 4, 5, 0]]
