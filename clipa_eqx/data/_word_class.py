"""The class of a word: noun, adjective, verb or other, as CLIPA's syntax reduction ranks them."""

import functools
import gzip
import hashlib
import importlib.resources
import json
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from tokenizers import decoders

from .._checks import check_choice
from ..config import WordClassBy
from ._byte_pair import WORD_END
from ._ragged import Ragged
from ._sentence_piece import SPACE
from ._tokenizer import Tokenizer
from ._word_piece import CONTINUATION


NOUN, ADJECTIVE, VERB, OTHER = range(4)
_MOST_KNOWN = 1 << 16

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


@dataclass(frozen=True)
class WordClassifier:
    """Gives each piece of a text a class. With `begins` and `ends` the pieces of one word share the word's class."""

    pieces: tuple[str, ...]
    """Spelling of each id."""
    byte_pair: bool
    table: UInt8[np.ndarray, " vocab"]
    """Class of each piece by itself."""
    begins: Bool[np.ndarray, " vocab"] | None = None
    """Whether a piece begins a word; None: every piece stands by itself."""
    ends: Bool[np.ndarray, " vocab"] | None = None
    """Whether a piece ends a word."""
    _known: dict[bytes, int] = field(default_factory=dict, repr=False, compare=False)
    """Classes of words of several pieces that came before."""

    @property
    def fingerprint(self) -> str:
        """Changes when any piece could get another class."""
        digest = hashlib.sha256(self.table.tobytes())
        if self.begins is not None and self.ends is not None:
            digest.update(self.begins.tobytes() + self.ends.tobytes() + json.dumps(self.pieces).encode())
        return digest.hexdigest()[:32]

    def classify(self, texts: Ragged) -> UInt8[np.ndarray, " values"]:
        """The class of each piece of some texts: 0 noun, 1 adjective, 2 verb, 3 other."""
        ids = texts.values
        classes = self.table[ids]
        if self.begins is None or self.ends is None:
            return classes
        first = self.begins[ids] | texts.first_of_rows()
        first[1:] |= self.ends[ids[:-1]]
        starts = np.flatnonzero(first)
        stops = np.append(starts[1:], len(ids))
        for word in np.flatnonzero(stops - starts > 1):
            place = slice(starts[word], stops[word])
            classes[place] = self._class_of_word(ids[place])
        return classes

    def _class_of_word(self, ids: Integer[np.ndarray, " pieces"]) -> int:
        key = ids.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            spellings = [self.pieces[index] for index in ids.tolist()]
            word = _decode_byte_pairs(spellings) if self.byte_pair else _join_word_pieces(spellings)
            known = self._known[key] = OTHER if word.startswith("'") else word_class(word)
        return known


def word_classifier(tokenizer: Tokenizer, by: WordClassBy = "word") -> WordClassifier:
    """What gives the pieces of a tokenizer their classes.

    Args:
        tokenizer: whose pieces.
        by: word: all pieces of a word have the class of the word, which agrees more often with taggers that read the
            context; piece: each has its own, as in CLIPA-JAX.
    """
    check_choice("by", by, WordClassBy)
    pieces, table, byte_pair = tuple(tokenizer.tokens()), word_classes(tokenizer), tokenizer.kind == "byte_pair"
    if by == "piece":
        return WordClassifier(pieces, byte_pair, table)
    special = np.zeros(len(pieces), bool)
    special[tokenizer.special_ids()] = True
    if byte_pair:
        begins, ends = special, special | np.array([piece.endswith(WORD_END) for piece in pieces])
    else:
        sentence = tokenizer.kind == "sentence_piece"
        begins = special | np.array(
            [piece.startswith(SPACE) if sentence else not piece.startswith(CONTINUATION) for piece in pieces]
        )
        ends = special
    return WordClassifier(pieces, byte_pair, table, begins, ends)


def _join_word_pieces(pieces: list[str]) -> str:
    # SentencePiece has a mark where a word begins, WordPiece where it goes on.
    return "".join(piece.removeprefix(CONTINUATION) for piece in pieces).removeprefix(SPACE)


def _decode_byte_pairs(pieces: list[str]) -> str:
    return decoders.ByteLevel().decode(["".join(pieces).removesuffix(WORD_END)])


def _class_of_word_piece(piece: str) -> int:
    if piece.startswith(CONTINUATION) and piece != CONTINUATION:
        return _class_by_ending(piece.removeprefix(CONTINUATION))
    reserved = piece.startswith("[") and piece.endswith("]")
    return OTHER if reserved else word_class(piece)


def _class_of_byte_pair(piece: str) -> int:
    text = _decode_byte_pairs([piece])
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
    packed = importlib.resources.files("clipa_eqx.data").joinpath("word_class.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    return {word: kind for kind, line in enumerate(lines) for word in line.split()}
