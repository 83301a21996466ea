"""The class of a word: noun, adjective, verb or other, as CLIPA's syntax reduction ranks them."""

import functools
import gzip
import importlib.resources

import numpy as np
from jaxtyping import UInt8
from tokenizers import decoders

from ._byte_pair import WORD_END
from ._classes import ADJECTIVE, NOUN, OTHER, VERB
from ._sentence_piece import SPACE
from ._tokenizer import Tokenizer
from ._word_piece import CONTINUATION


_SUFFIXES = {
    "ly": OTHER,
    **dict.fromkeys(("ing", "ed", "ize", "ify"), VERB),
    **dict.fromkeys(("able", "ible", "ous", "less", "ful", "ic", "al", "ive"), ADJECTIVE),
}
"""Endings that give away the class of more than 0.7 of the lexicon's words with them, most above 0.9."""


def word_class(word: str) -> int:
    """The usual class of a word by itself: 0 noun, 1 adjective, 2 verb, 3 other.

    Looks the word up in Brill's lexicon (see word_class.NOTICE), then goes by its ending; an unknown word is a noun, as
    most are. Context is not read: "left" is a verb here, also in "the left door". Text without a letter is other.

    Args:
        word: one word, in any case.
    """
    word = word.lower()
    known = _lexicon().get(word)
    return _class_by_ending(word) if known is None else known


def word_classes(tokenizer: Tokenizer) -> UInt8[np.ndarray, " vocab"]:
    """The class of each vocabulary entry by itself: 0 noun, 1 adjective, 2 verb, 3 other.

    CLIPA tags each entry of its vocabulary in the same way, context-free (transforms/bert_ops.py), with NLTK's tagger.
    Special tokens, digits and punctuation are other. In WordPiece a piece that begins a word counts as that word, and
    one that continues it goes by its ending: "##ing" is a verb, "##board" a noun. In byte pairs a piece that ends a
    word counts as that word, and one that does not is a noun. SentencePiece's mark in front begins a word.

    Args:
        tokenizer: whose vocabulary to classify.
    """
    classify = {"byte_pair": _class_of_byte_pair, "sentence_piece": _class_of_sentence_piece}.get(
        tokenizer.kind, _class_of_word_piece
    )
    classes = np.array([classify(piece) for piece in tokenizer.tokens()], np.uint8)
    classes[tokenizer.special_ids()] = OTHER
    return classes


def decode_byte_pairs(pieces: list[str]) -> str:
    """The word that byte pairs spell."""
    return decoders.ByteLevel().decode(["".join(pieces).removesuffix(WORD_END)])


def _class_of_word_piece(piece: str) -> int:
    if piece.startswith(CONTINUATION) and piece != CONTINUATION:
        return _class_by_ending(piece.removeprefix(CONTINUATION))
    reserved = piece.startswith("[") and piece.endswith("]")
    return OTHER if reserved else word_class(piece)


def _class_of_byte_pair(piece: str) -> int:
    text = decode_byte_pairs([piece])
    if text.startswith("'"):
        return OTHER
    if piece.endswith(WORD_END):
        return word_class(text)
    return NOUN if _has_letter(text) else OTHER


def _class_of_sentence_piece(piece: str) -> int:
    if piece.startswith("<") and piece.endswith(">"):
        return OTHER
    return word_class(piece.removeprefix(SPACE)) if piece.startswith(SPACE) else _class_by_ending(piece)


def _class_by_ending(text: str) -> int:
    if not _has_letter(text):
        return OTHER
    return next((kind for suffix, kind in _SUFFIXES.items() if text.endswith(suffix)), NOUN)


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


@functools.cache
def _lexicon() -> dict[str, int]:
    """Class of each known word; the file has one line of words per class."""
    packed = importlib.resources.files("clipa_eqx.data.text").joinpath("word_class.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    return {word: kind for kind, line in enumerate(lines) for word in line.split()}
