"""Word classes: well-known words, endings, and whole vocabularies of both kinds."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipa_eqx.data import word_class, word_classes, word_classifier
from clipa_eqx.data.text._byte_pair import build_byte_pair
from clipa_eqx.data.text._classes import ADJECTIVE, NOUN, OTHER, VERB
from clipa_eqx.data.text._tokenizer import load_tokenizer, Tokenizer


def test_builder_reduces_a_lexicon(tmp_path):
    lines = [
        ";;; header NN",
        "dog NN",
        "Dog VB",
        "red JJ",
        "Paris NNP",
        "PARIS VB",
        "paRis NNP",
        "naïve JJ",
        "don't MD",
        "! .",
    ]
    (tmp_path / "lexicon.txt").write_text("\n".join([*lines, "is VBZ", "two CD", "tagless"]), encoding="utf-8")
    script = Path(__file__).parents[1] / "experiments" / "build_word_lexicon.py"
    files = ["--lexicon", str(tmp_path / "lexicon.txt"), "--output", str(tmp_path / "out.gz")]
    done = subprocess.run([sys.executable, str(script), *files], capture_output=True, text=True, check=True)
    content = (tmp_path / "out.gz").read_bytes()
    assert gzip.decompress(content) == b"dog paris\nred\nis\ntwo\n"
    counts = {"nouns": 2, "adjectives": 1, "verbs": 1, "others": 1, "bytes": len(content)}
    assert json.loads(done.stdout.splitlines()[-1]) == counts


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


def test_a_tagger_reads_the_context(tmp_path, monkeypatch):
    """A tagger trained on two sentences, found where NLTK looks for its weights."""
    import nltk

    pieces = ["[PAD]", "[UNK]", "[CLS]", "the", "left", "door", "we", "home", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = load_tokenizer(tmp_path)
    classifier = word_classifier(tokenizer, "nltk")
    texts = tokenizer.split(["the left door", "", "we left homes \u2603"])
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tag._get_tagger.cache_clear()
    with pytest.raises(ValueError, match="averaged_perceptron_tagger_eng"):
        classifier.classify(texts)
    tagger = nltk.tag.PerceptronTagger(load=False)
    sentences = [
        [("the", "DT"), ("left", "JJ"), ("door", "NN")],
        [("we", "PRP"), ("left", "VBD"), ("homes", "NNS")],
    ]
    tagger.train(sentences * 20)
    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True, mode=0o700)
    tagger.save_to_json("eng", str(folder))
    assert classifier.classify(texts).tolist() == [OTHER, ADJECTIVE, NOUN, OTHER, VERB, NOUN, NOUN, OTHER]
    nltk.tag._get_tagger.cache_clear()
