"""SentencePiece's unigram vocabularies, which SigLIP uses: `spiece.model`, a protocol buffer of pieces and scores."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from tokenizers import models, normalizers, pre_tokenizers, processors, Tokenizer as FastTokenizer


SPACE = "\u2581"
"""Stands for the blank in front of a word."""

# Numbers of the fields and types that are read (sentencepiece_model.proto).
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARACTER_TABLE = 2
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


def build_sentence_piece(path: Path) -> FastTokenizer:
    """The tokenizer of a `spiece.model`: characters by its table, words by their likeliest pieces, then `</s>`.

    It does what transformers' T5 tokenizer does with the same file (Kudo, arXiv 1804.10959).

    Args:
        path: the file.

    Raises:
        ValueError: the file is damaged, or holds another model than a unigram one that ends texts with `</s>`.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        trainer, normalizer = (
            dict(_fields(b"".join(_bytes(value) for number, value in fields if number == part)))
            for part in (_TRAINER, _NORMALIZER)
        )
        pieces = [_read_piece(_bytes(value)) for number, value in fields if number == _PIECE]
        kind = trainer.get(_MODEL_TYPE, _UNIGRAM)
        if kind != _UNIGRAM:
            raise ValueError(f"its model is of type {kind}, where a unigram model has 1; use its tokenizer.json")
        return _build(pieces, _bytes(normalizer.get(_CHARACTER_TABLE, b"")))
    except ValueError as error:
        raise ValueError(f"{path} is no SentencePiece model that this package reads: {error}.") from error


_Piece = tuple[str, float, int]
"""Text, log probability and type."""


def _build(pieces: list[_Piece], table: bytes) -> FastTokenizer:
    ids = {text: index for index, (text, _, _) in enumerate(pieces)}
    unknown = [index for index, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    special = [text for text, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    if len(unknown) != 1 or "</s>" not in special or len(ids) != len(pieces):
        raise ValueError(f"its {len(pieces)} pieces need one for the unknown, one that is </s>, and no two alike")
    fast = FastTokenizer(models.Unigram([(text, score) for text, score, _ in pieces], unknown[0]))
    if table:
        try:
            fast.normalizer = normalizers.Precompiled(table)
        except Exception as error:  # the package raises no narrower class
            raise ValueError(f"its table of characters is damaged: {error}") from error
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True),
        ]
    )
    fast.add_special_tokens(special)
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    return fast


def _read_piece(data: bytes) -> _Piece:
    values = dict(_fields(data))
    score = values.get(_SCORE, bytes(4))
    if not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("the score of a piece is no 32-bit number")
    return _bytes(values.get(_TEXT, b"")).decode(), struct.unpack("<f", score)[0], cast(int, values.get(_TYPE, _NORMAL))


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field holds a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol-buffer message: integers, and all else as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        form = key & 7
        if form == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if form == 2:
            size, place = _varint(data, place)
        elif form in (1, 5):
            size = 8 if form == 1 else 4
        else:
            raise ValueError(f"a field has the unknown form {form}")
        if size > len(data) - place:
            raise ValueError("the file ends within a field")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """An integer of seven bits per byte, lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("the file ends within a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is longer than 64 bits")
