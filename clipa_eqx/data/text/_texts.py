"""Captions to token ids and word classes: at once, or out of what lies ready beside the index."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from ...config import DataConfig
from .._mixture import MixedPairs
from .._pair import PairSource
from ..index._index import ShardIndex
from ._classes import OTHER
from ._classifier import word_classifier, WordClassifier
from ._ragged import Ragged
from ._text_cache import build_text_cache, MOST_PIECES, open_text_cache, TextCache, TextRules, unpack_texts
from ._tokenizer import Tokenizer


_THREADS = 8


class Caption(NamedTuple):
    """One caption of a source."""

    pair: int
    """Index of its pair."""
    number: int
    """Which of the pair's captions."""
    text: str


@runtime_checkable
class TextReader(Protocol):
    """Turns captions into rows of token ids. Several threads read at once, and a pickled copy reads the same."""

    def read(
        self, captions: Sequence[Caption], length: int
    ) -> tuple[Int32[np.ndarray, "batch length"], UInt8[np.ndarray, "batch length"]]:
        """Token ids of captions, each cut or padded to `length`, and the class of each token's word."""
        ...


@dataclass(frozen=True)
class LiveTexts:
    """Splits each caption when it is asked for."""

    tokenizer: Tokenizer
    classifier: WordClassifier

    def read(
        self, captions: Sequence[Caption], length: int
    ) -> tuple[Int32[np.ndarray, "batch length"], UInt8[np.ndarray, "batch length"]]:
        """Token ids and word classes."""
        pieces = self.tokenizer.split([caption.text for caption in captions])
        return pad_texts(self.tokenizer, pieces, self.classifier.classify(pieces), length)


def pad_texts(
    tokenizer: Tokenizer, pieces: Ragged, classes: UInt8[np.ndarray, " values"], length: int
) -> tuple[Int32[np.ndarray, "batch length"], UInt8[np.ndarray, "batch length"]]:
    """Rows of token ids and word classes; start, end and padding are of class other."""
    tokens = tokenizer.pad(pieces, length)
    word_class = np.full(tokens.shape, OTHER, np.uint8)
    last = length if tokenizer.end_id is None else length - 1
    Ragged(classes, pieces.counts).write(word_class[:, 1:last])
    return tokens, word_class


@runtime_checkable
class IndexedPairs(Protocol):
    """A source whose pairs lie in indexed shards."""

    @property
    def shards(self) -> Sequence[ShardIndex]:
        """The shards."""
        ...

    def locate(self, index: int, /) -> tuple[int, int]:
        """In which shard a pair is, and where in it."""
        ...


@dataclass(frozen=True)
class KeptTexts:
    """Takes captions out of the shards' kept texts, and splits those of shards that have none."""

    pairs: IndexedPairs
    rules: TextRules
    caches: tuple[TextCache | None, ...]
    """Of each shard."""

    def read(
        self, captions: Sequence[Caption], length: int
    ) -> tuple[Int32[np.ndarray, "batch length"], UInt8[np.ndarray, "batch length"]]:
        """Token ids and word classes."""
        packed: list[bytes] = []
        missing: list[int] = []
        for row, caption in enumerate(captions):
            shard, place = self.pairs.locate(caption.pair)
            cache = self.caches[shard]
            if cache is None:
                missing.append(row)
            packed.append(b"" if cache is None else cache.read(place, caption.number))
        pieces, classes = unpack_texts(packed, self.rules.id_type)
        tokens, word_class = pad_texts(self.rules.tokenizer, pieces, classes, length)
        if missing:
            live = LiveTexts(self.rules.tokenizer, self.rules.classifier)
            tokens[missing], word_class[missing] = live.read([captions[row] for row in missing], length)
        return tokens, word_class


@dataclass(frozen=True)
class MixedTexts:
    """Asks the reader of each set of a mixture."""

    pairs: MixedPairs
    readers: tuple[TextReader, ...]
    """Of each set."""

    def read(
        self, captions: Sequence[Caption], length: int
    ) -> tuple[Int32[np.ndarray, "batch length"], UInt8[np.ndarray, "batch length"]]:
        """Token ids and word classes."""
        tokens = np.empty((len(captions), length), np.int32)
        word_class = np.empty((len(captions), length), np.uint8)
        found = [self.pairs.locate_source(caption.pair) for caption in captions]
        for number, reader in enumerate(self.readers):
            rows = [row for row, (source, _) in enumerate(found) if source == number]
            own = [captions[row]._replace(pair=found[row][1]) for row in rows]
            if rows:
                tokens[rows], word_class[rows] = reader.read(own, length)
        return tokens, word_class


def open_texts(pairs: PairSource, tokenizer: Tokenizer, data: DataConfig) -> TextReader:
    """What turns the captions of a source into tokens: out of texts kept beside the index where `keep_texts` was called
    for the same vocabulary and classes, at once where it was not. Both give the same tokens.

    Args:
        pairs: the source.
        tokenizer: splits captions.
        data: how pieces get their classes, and how many tokens are read.
    """
    if isinstance(pairs, MixedPairs):
        return MixedTexts(pairs, tuple(open_texts(source, tokenizer, data) for source in pairs.sources))
    classifier = word_classifier(tokenizer, data.word_class)
    if isinstance(pairs, IndexedPairs) and data.caption_tokens <= MOST_PIECES:
        rules = TextRules(tokenizer, classifier)
        with ThreadPoolExecutor(_THREADS) as threads:
            caches = tuple(threads.map(lambda index: open_text_cache(index, rules), pairs.shards))
        if any(cache is not None for cache in caches):
            return KeptTexts(pairs, rules, caches)
    return LiveTexts(tokenizer, classifier)


def keep_texts(pairs: PairSource, tokenizer: Tokenizer, data: DataConfig) -> dict[str, int]:
    """Split all captions of a source once and keep them beside the index of each shard that has none yet.

    Args:
        pairs: the source; it must lie in shards.
        tokenizer: splits captions.
        data: how pieces get their classes.

    Returns:
        `shards` that were done and `bytes` that were written.

    Raises:
        OSError: a file cannot be written.
        ValueError: the source does not lie in shards.
    """
    if not isinstance(pairs, IndexedPairs):
        raise ValueError(
            "Tokens are kept beside the index of shards, and this source has none: leave the tokenizer out."
        )
    rules = TextRules(tokenizer, word_classifier(tokenizer, data.word_class))

    def keep(index: ShardIndex) -> int:
        return 0 if open_text_cache(index, rules) else build_text_cache(index, rules)

    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = list(threads.map(keep, pairs.shards))
    return {"shards": sum(size > 0 for size in sizes), "bytes": sum(sizes)}
