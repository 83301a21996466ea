"""The class of each piece of a text, by the word that it is part of."""

import hashlib
import itertools
import json
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8

from ..._checks import check_choice
from ...config import WordClassBy
from ._byte_pair import WORD_END
from ._classes import OTHER
from ._ragged import Ragged
from ._sentence_piece import SPACE
from ._tagger import tag_words
from ._tokenizer import Tokenizer
from ._word_class import decode_byte_pairs, word_class, word_classes
from ._word_piece import CONTINUATION


_MOST_KNOWN = 1 << 16


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
    in_context: bool = False
    """Classes go by NLTK's tagger, which reads the text."""
    _known: dict[bytes, int] = field(default_factory=dict, repr=False, compare=False)
    """Classes of words of several pieces that came before."""

    @property
    def fingerprint(self) -> str:
        """Changes when any piece could get another class."""
        digest = hashlib.sha256(self.table.tobytes())
        if self.begins is not None and self.ends is not None:
            digest.update(b"nltk" if self.in_context else b"")
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
        if self.in_context:
            return self._tagged(texts, starts, stops)
        for word in np.flatnonzero(stops - starts > 1):
            place = slice(starts[word], stops[word])
            classes[place] = self._class_of_word(ids[place])
        return classes

    def _tagged(
        self, texts: Ragged, starts: Int64[np.ndarray, " words"], stops: Int64[np.ndarray, " words"]
    ) -> UInt8[np.ndarray, " values"]:
        words = [self._spell(texts.values[start:stop]) for start, stop in zip(starts, stops, strict=True)]
        # The words of each text: those that end before it does.
        bounds = np.searchsorted(stops, texts.ends, side="right").tolist()
        tags = [tag for first, last in itertools.pairwise([0, *bounds]) for tag in tag_words(words[first:last])]
        classes = np.repeat(np.array(tags, np.uint8), stops - starts)
        if self.begins is not None and self.ends is not None:
            # Special tokens, which alone both begin and end a word, stand for no text.
            classes[self.begins[texts.values] & self.ends[texts.values]] = OTHER
        return classes

    def _class_of_word(self, ids: Integer[np.ndarray, " pieces"]) -> int:
        key = ids.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            word = self._spell(ids)
            known = self._known[key] = OTHER if word.startswith("'") else word_class(word)
        return known

    def _spell(self, ids: Integer[np.ndarray, " pieces"]) -> str:
        spellings = [self.pieces[index] for index in ids.tolist()]
        if self.byte_pair:
            return decode_byte_pairs(spellings)
        # SentencePiece has a mark where a word begins, WordPiece where it goes on.
        return "".join(piece.removeprefix(CONTINUATION) for piece in spellings).removeprefix(SPACE)


def word_classifier(tokenizer: Tokenizer, by: WordClassBy = "word") -> WordClassifier:
    """What gives the pieces of a tokenizer their classes.

    Args:
        tokenizer: whose pieces.
        by: word: all pieces of a word have the class of the word, which agrees more often with taggers that read the
            context; piece: each has its own, as in CLIPA-JAX; nltk: NLTK's tagger reads the text.
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
    return WordClassifier(pieces, byte_pair, table, begins, ends, in_context=by == "nltk")
