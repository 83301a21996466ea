"""Word classes: well-known words, endings, and whole vocabularies of both kinds."""

import numpy as np

from clipa_eqx.data._byte_pair import build_byte_pair
from clipa_eqx.data._tokenizer import load_tokenizer, Tokenizer
from clipa_eqx.data._word_class import ADJECTIVE, NOUN, OTHER, VERB, word_class, word_classes


def test_class_numbers_rank_as_the_syntax_reduction_does():
    assert (NOUN, ADJECTIVE, VERB, OTHER) == (0, 1, 2, 3)


def test_well_known_words():
    words = {
        NOUN: "dog photo beach skateboard king bed square Paris people",
        ADJECTIVE: "red beautiful small large WHITE old yellow",
        VERB: "running is sitting holds jumped take made",
        OTHER: "a the of on with two quickly and she",
    }
    for kind, text in words.items():
        assert {word: word_class(word) for word in text.split()} == dict.fromkeys(text.split(), kind)


def test_unknown_words_go_by_their_ending():
    words = {"blorfing": VERB, "blorfed": VERB, "blorfly": OTHER, "blorfous": ADJECTIVE, "blorfs": NOUN, "Blorf": NOUN}
    assert {word: word_class(word) for word in words} == words


def test_text_without_letters_is_other():
    assert [word_class(text) for text in ("", "42", "?!", "½", "\x00", "😀")] == [OTHER] * 6
    assert word_class("中") == NOUN


def test_word_piece_vocabulary(tmp_path):
    line = "[PAD] [UNK] [CLS] [SEP] [MASK] [unused7] a dog red runs , 7 [ ##ing ##board ##2 ##"
    pieces = line.split()
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    classes = word_classes(load_tokenizer(tmp_path))
    assert classes.dtype == np.uint8
    named = dict(zip(pieces, classes.tolist(), strict=True))
    assert {piece for piece, kind in named.items() if kind == NOUN} == {"dog", "##board"}
    assert {piece for piece, kind in named.items() if kind == ADJECTIVE} == {"red"}
    assert {piece for piece, kind in named.items() if kind == VERB} == {"runs", "##ing"}


def test_byte_pair_vocabulary():
    expected = {
        "dog</w>": NOUN,
        "run</w>": VERB,
        "a</w>": OTHER,
        "ru": NOUN,
        "'s</w>": OTHER,
        "!": OTHER,
        "7</w>": OTHER,
    }
    expected |= {"7</w>": OTHER, "Ã©</w>": NOUN, "âĤ¬</w>": OTHER, "<|startoftext|>": OTHER, "<|endoftext|>": OTHER}
    vocab = {piece: index for index, piece in enumerate(expected)}
    tokenizer = Tokenizer(build_byte_pair(vocab, []), "byte_pair", pad_id=0, start_id=9, end_id=10)
    assert dict(zip(expected, word_classes(tokenizer).tolist(), strict=True)) == expected
