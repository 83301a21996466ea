"""Captions out of the cache beside the index are those that are split at once: ids, word classes and reductions."""

import json
import pickle
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import write_tar

from clipa_eqx.config import DataConfig
from clipa_eqx.data import (
    Caption,
    keep_texts,
    LiveTexts,
    load_tokenizer,
    open_pairs,
    open_texts,
    train_tokenizer,
    word_classifier,
)
from clipa_eqx.data.io._reading import ChangedFileError
from clipa_eqx.data.text._byte_pair import build_byte_pair
from clipa_eqx.data.text._texts import KeptTexts
from clipa_eqx.data.text._tokenizer import Tokenizer
from clipa_eqx.reduction import syntax_text


PAIRS = 1500
WORDS = [
    "a",
    "the",
    "of",
    "dog",
    "dogs",
    "red",
    "running",
    "skateboard",
    "quickly",
    "photo",
    "42",
    "blorfing",
    ",",
    "!",
]
LONG = ["dog " * 700, "x" * 300 + " red dog", "\u200b", "dog\tdog\n\nred  !", "&lt;b&gt;", "[SEP] <|endoftext|> dog"]
LONG += ["café's Straße", "o'clock 中 &amp; dog"]


def captions_of(number):
    rng = np.random.default_rng(number)
    made = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(1 + number % 19)]
    return [*made, LONG[number % len(LONG)]] if number % 50 == 0 else made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards without pictures worth reading: 1 to 19 captions a pair, the last shard one each."""
    folder = tmp_path_factory.mktemp("texts")
    for shard in range(3):
        numbers = range(shard * PAIRS // 3, (shard + 1) * PAIRS // 3)
        texts = ((number, captions_of(number)[: 1 if shard == 2 else None]) for number in numbers)
        members = (
            member
            for number, captions in texts
            for member in ((f"{number}.jpg", b"x"), (f"{number}.json", json.dumps({"caption": captions}).encode()))
        )
        write_tar(folder / f"{shard}.tar", members)
    return folder


def word_pieces():
    return train_tokenizer((text for number in range(200) for text in captions_of(number)), vocab_size=300)


def byte_pairs():
    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    merges = [
        ("d", "o"),
        ("do", "g</w>"),
        ("r", "e"),
        ("re", "d</w>"),
        ("i", "n"),
        ("in", "g</w>"),
        ("t", "h"),
        ("th", "e</w>"),
    ]
    pieces = [*letters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    fast = build_byte_pair({piece: index for index, piece in enumerate(pieces)}, merges)
    return Tokenizer(fast, "byte_pair", pad_id=0, start_id=len(pieces) - 2, end_id=len(pieces) - 1, repair=True)


@pytest.mark.parametrize("make", [word_pieces, byte_pairs])
@pytest.mark.parametrize(("by", "lengths"), [("word", (32,)), ("piece", (1, 2, 16, 64))])
def test_kept_texts_are_those_split_at_once(folder, make, by, lengths):
    pairs, tokenizer, data = open_pairs(DataConfig(train=str(folder))), make(), DataConfig(word_class=by)
    live = open_texts(pairs, tokenizer, data)
    assert isinstance(live, LiveTexts)
    assert keep_texts(pairs, tokenizer, data)["shards"] == 3
    assert keep_texts(pairs, tokenizer, data) == {"shards": 0, "bytes": 0}
    kept = pickle.loads(pickle.dumps(open_texts(pairs, tokenizer, data)))  # noqa: S301
    assert isinstance(kept, KeptTexts)
    captions = [
        Caption(index, number, text) for index in range(PAIRS) for number, text in enumerate(pairs.captions(index))
    ]
    assert len(captions) >= 10_000
    captions = captions if by == "word" else captions[::30]
    reduce = jax.jit(
        jax.vmap(
            lambda tokens, priority: syntax_text(
                tokens, 8, priority=priority, pad_id=tokenizer.pad_id, end_id=tokenizer.end_id
            )
        )
    )
    order = np.random.default_rng(0).permutation(len(captions))
    chosen = [captions[place] for place in order]
    without_text = [caption._replace(text="") for caption in chosen]
    for length in lengths:
        expected, found = live.read(chosen, length), kept.read(without_text, length)
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert (a == b).all()
    rows = [reduce(jnp.asarray(tokens), jnp.asarray(classes, jnp.int32)) for tokens, classes in (expected, found)]
    assert (rows[0] == rows[1]).all()


def test_a_caption_takes_two_bytes_and_two_bits_a_piece(tmp_path):
    texts = [captions_of(number)[0].encode() for number in range(500)]
    members = (member for n, text in enumerate(texts) for member in ((f"{n}.jpg", b"x"), (f"{n}.txt", text)))
    pairs, tokenizer = open_pairs(DataConfig(train=str(write_tar(tmp_path / "x.tar", members)))), word_pieces()
    written = keep_texts(pairs, tokenizer, DataConfig())["bytes"]
    counts = tokenizer.split([pairs.captions(index)[0] for index in range(len(pairs))]).counts
    assert written <= (2.25 * counts + 0.75 + 8).sum() + 300


def test_shards_without_kept_texts_are_split_at_once(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", ((f"{i}.{end}", b"a red dog") for i in range(3) for end in ("jpg", "txt")))
    tokenizer, data = word_pieces(), DataConfig()
    keep_texts(open_pairs(DataConfig(train=str(tmp_path / "1.tar"))), tokenizer, data)
    texts = open_texts(open_pairs(DataConfig(train=str(tmp_path))), tokenizer, data)
    captions = [Caption(index, 0, "a red dog") for index in (5, 0, 3, 2)]
    tokens, classes = texts.read(captions, 6)
    assert (tokens == tokens[:1]).all()
    assert (classes == classes[:1]).all()


def test_kept_texts_go_with_vocabulary_classes_and_shard(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.txt", b"a red dog")])
    pairs, tokenizer = open_pairs(DataConfig(train=str(path))), word_pieces()
    keep_texts(pairs, tokenizer, DataConfig())
    assert isinstance(open_texts(pairs, tokenizer, DataConfig()), KeptTexts)
    assert isinstance(open_texts(pairs, tokenizer, DataConfig(word_class="piece")), LiveTexts)
    assert isinstance(open_texts(pairs, byte_pairs(), DataConfig()), LiveTexts)
    assert isinstance(open_texts(pairs, tokenizer, DataConfig(caption_tokens=600)), LiveTexts)
    write_tar(path, [("1.jpg", b"x"), ("1.txt", b"the red dog")])
    assert isinstance(open_texts(open_pairs(DataConfig(train=str(path))), tokenizer, DataConfig()), LiveTexts)


def test_damaged_texts_are_never_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.txt", b"a red dog running")])
    pairs, tokenizer, data = open_pairs(DataConfig(train=str(path))), word_pieces(), DataConfig()
    expected = open_texts(pairs, tokenizer, data).read([Caption(0, 0, "a red dog running")], 12)
    keep_texts(pairs, tokenizer, data)
    (file,) = (tmp_path / ".clipa_index").glob("*.text")
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        texts = open_texts(pairs, tokenizer, data)
        try:
            found = texts.read([Caption(0, 0, "a red dog running")], 12)
        except ChangedFileError:
            continue
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))
    file.write_bytes(whole[:-1])
    assert isinstance(open_texts(pairs, tokenizer, data), LiveTexts)


def test_texts_of_loose_files_are_split_at_once(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"x")
    (tmp_path / "1.txt").write_text("a dog")
    pairs = open_pairs(DataConfig(train=str(tmp_path)))
    assert isinstance(open_texts(pairs, word_pieces(), DataConfig()), LiveTexts)
    with pytest.raises(ValueError, match="this source has none"):
        keep_texts(pairs, word_pieces(), DataConfig())


def test_pieces_share_the_class_of_their_word(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "[PAD] [UNK] [CLS] [SEP] [MASK] a run ##ning shoe skate ##board ##ing".replace(" ", "\n")
    )
    tokenizer = load_tokenizer(tmp_path)
    caption = [Caption(0, 0, "a running shoe skateboarding \u2603")]
    by_piece, by_word = (
        LiveTexts(tokenizer, word_classifier(tokenizer, by)).read(caption, 10)[1][0].tolist()
        for by in ("piece", "word")
    )
    #                    cls a run ##ning shoe skate ##board ##ing unk pad
    assert by_piece == [3, 3, 2, 2, 0, 2, 0, 2, 3, 3]
    assert by_word == [3, 3, 2, 2, 0, 2, 2, 2, 3, 3]
