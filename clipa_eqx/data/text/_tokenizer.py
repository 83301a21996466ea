"""Captions to token ids: BERT's WordPiece in CLIPA's and Hugging Face's form, CLIP's byte pairs, SigLIP's pieces."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, Literal

import numpy as np
from jaxtyping import Int32
from tokenizers import models, Tokenizer as FastTokenizer

from ..._checks import check_at_least, check_choice
from ...config import config_from_json
from ._byte_pair import build_byte_pair, read_open_clip_merges, read_vocab_and_merges
from ._cleaning import canonicalize_text, join_surrogates, repair_text
from ._ragged import Ragged
from ._sentence_piece import build_sentence_piece
from ._word_piece import build_word_piece, PAD, read_vocab_txt, SEPARATOR, train_word_pieces


TokenizerKind = Literal["wordpiece", "wordpiece_sep", "byte_pair", "sentence_piece"]

_FAST_FILE, _SETTINGS_FILE = "tokenizer.json", "clipa_tokenizer.json"
_MOST_CHARACTERS = 16_384
"""66 characters for each token of the longest context in use (248), so that real captions are never cut by it."""


@dataclass(frozen=True)
class Tokenizer:
    """Turns captions into padded rows of token ids.

    Special tokens are never read out of a caption: a text that holds `[SEP]` or `<|endoftext|>` is split like any
    other, where Hugging Face and OpenAI would emit the special id.
    """

    fast: FastTokenizer
    """Vocabulary and rules, of the `tokenizers` package."""
    kind: TokenizerKind
    """wordpiece: start, pieces (CLIPA). wordpiece_sep: start, pieces, end (Hugging Face). byte_pair: alike (CLIP).
    sentence_piece: pieces, end (SigLIP)."""
    pad_id: int
    """Id of padding."""
    start_id: int | None
    """Id that begins every text: `[CLS]` or the start token; None with kind sentence_piece."""
    end_id: int | None
    """Id that ends every text; None with kind wordpiece."""
    repair: bool = False
    """Repair broken Unicode and resolve HTML entities first, as OpenAI's CLIP and open_clip do; CLIPA-JAX does not."""
    canonical: bool = False
    """Make letters small and drop punctuation, as SigLIP does; with `repair`, in the form of big_vision and open_clip,
    else in that of transformers (see `canonicalize_text`)."""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, TokenizerKind)
        if (self.end_id is None) != (self.kind == "wordpiece"):
            raise ValueError(f"kind={self.kind!r} and end_id={self.end_id} disagree: only kind 'wordpiece' has no end.")
        if (self.start_id is None) != (self.kind == "sentence_piece"):
            raise ValueError(
                f"kind={self.kind!r} and start_id={self.start_id} disagree: only kind 'sentence_piece' has no start."
            )
        for name in ("pad_id", "start_id", "end_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name}={value} lies outside a vocabulary of {self.vocab_size} ids.")
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fast.encode_special_tokens = True

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled fast tokenizer forgets encode_special_tokens; building anew sets it.
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs: the highest id plus 1."""
        return len(self._tokens)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when any caption could get other ids."""
        settings = (getattr(self, field.name) for field in dataclasses.fields(_Settings))
        rules = json.dumps([self.fast.to_str(), *settings])
        return hashlib.sha256(rules.encode()).hexdigest()[:32]

    def encode_batch(self, captions: Sequence[str], length: int) -> Int32[np.ndarray, "batch length"]:
        """Token ids of captions, each cut or padded to `length`.

        A text that is too long keeps its first ids, and its end token, if it has one, in the last slot.

        Args:
            captions: texts; may be empty, or hold any character, lone surrogates included.
            length: ids per caption, start and end tokens included, at least 1.
        """
        return self.pad(self.split(captions), length)

    def split(self, captions: Sequence[str]) -> Ragged:
        """Ids of the pieces of captions, without start, end and padding.

        No more than 16,384 characters of a caption are read, so one of any size takes bounded time.

        Args:
            captions: texts; may be empty, or hold any character, lone surrogates included.
        """
        rows = list(self._pieces(captions, _MOST_CHARACTERS))
        counts = np.array([len(row) for row in rows], np.int64)
        return Ragged(np.fromiter(itertools.chain.from_iterable(rows), np.int32, counts.sum()), counts)

    def pad(self, pieces: Ragged, length: int) -> Int32[np.ndarray, "batch length"]:
        """What `encode_batch` gives, of captions that are split already.

        Args:
            pieces: what `split` gave, in which a text may have been cut at `length` or later.
            length: ids per caption, start and end tokens included, at least 1.
        """
        check_at_least("length", length, 1)
        ids = np.full((len(pieces.counts), length), self.pad_id, np.int32)
        last = length if self.end_id is None else length - 1
        first = 0 if self.start_id is None else 1
        if self.start_id is not None:
            ids[:, 0] = self.start_id
        pieces.write(ids[:, first:last])
        if self.end_id is not None:
            ids[np.arange(len(ids)), np.minimum(pieces.counts + first, last)] = self.end_id
        return ids

    def count_tokens(self, captions: Sequence[str]) -> Int32[np.ndarray, " batch"]:
        """How long each caption is in tokens before it is cut, start and end tokens included.

        Of a caption only the first 100,000 characters count.
        """
        bounds = sum(bound is not None for bound in (self.start_id, self.end_id))
        return np.array([len(pieces) + bounds for pieces in self._pieces(captions, 100_000)], np.int32)

    def _pieces(self, captions: Sequence[str], most_characters: int) -> Iterator[list[int]]:
        texts = [join_surrogates(caption[:most_characters]) for caption in captions]
        if self.repair:
            texts = [repair_text(text) for text in texts]
        if self.canonical:
            underscores = "blank" if self.repair else "drop"
            texts = [canonicalize_text(text, underscores=underscores) for text in texts]
        if self._lowers:
            texts = [text.lower() for text in texts]
        return (encoding.ids for encoding in self._splitter.encode_batch_fast(texts, add_special_tokens=False))

    @property
    def _lowers(self) -> bool:
        """Whether Python lower-cases, which knows the final sigma; the fast tokenizer lower-cases letter by letter."""
        return self.repair and self.kind == "byte_pair"

    @functools.cached_property
    def _splitter(self) -> FastTokenizer:
        if not self._lowers:
            return self.fast
        # The stored rules compose characters (NFC), as Hugging Face does; open_clip leaves those that came out of HTML
        # entities as they are.
        splitter = FastTokenizer.from_str(self.fast.to_str())
        splitter.normalizer = None
        splitter.encode_special_tokens = True
        return splitter

    def tokens(self) -> list[str]:
        """The piece of each id, as the vocabulary spells it; empty where an id has none."""
        return list(self._tokens)

    @functools.cached_property
    def _tokens(self) -> tuple[str, ...]:
        vocab = self.fast.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocab.values(), default=-1) + 1)
        for piece, index in vocab.items():
            pieces[index] = piece
        return tuple(pieces)

    def special_ids(self) -> list[int]:
        """Ids of tokens that stand for no text, in ascending order."""
        added = self.fast.get_added_tokens_decoder()
        return sorted(index for index, token in added.items() if token.special)

    def save(self, directory: Path | str) -> None:
        """Write `tokenizer.json` and `clipa_tokenizer.json`, from which `load_tokenizer` makes an equal tokenizer."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.fast.save(str(directory / _FAST_FILE))
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(_Settings)}
        (directory / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Settings:
    """What `clipa_tokenizer.json` may fix; an empty kind or an id of None leaves it to the vocabulary."""

    kind: str = ""
    pad_id: int | None = None
    start_id: int | None = None
    end_id: int | None = None
    repair: bool | None = None
    canonical: bool | None = None


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer from a file or a folder.

    In a folder `tokenizer.json` comes first, then `vocab.txt`, then `vocab.json` with `merges.txt`, then
    `bpe_simple_vocab_16e6.txt.gz`, then `spiece.model`. A `vocab.txt` is read as CLIPA does: `[CLS]` and pieces, no
    `[SEP]`. A `clipa_tokenizer.json` beside it with `{"kind": "wordpiece_sep"}` chooses Hugging Face's form. In a
    `tokenizer.json` the file's own template decides. Byte pairs are padded with 0 and repair their texts, as OpenAI and
    open_clip do; `"repair": false` keeps Hugging Face's form, which does not repair. open_clip reads captions for its
    CLIPA models with `{"kind": "wordpiece_sep", "end_id": 0, "repair": true}`. SigLIP's pieces are padded with the
    token that a `tokenizer_config.json` beside them names, else with their end, and texts for its unigram models become
    canonical as in transformers; with `"repair": true`, as in open_clip.

    Args:
        path: a `vocab.txt`, a `tokenizer.json`, a `.txt.gz` list of merges, a `spiece.model`, or a folder with one of
            these.

    Raises:
        FileNotFoundError: there is no such path, or the folder holds none of these files.
        ValueError: a file is broken, or its model is neither WordPiece nor CLIP's byte pairs nor SigLIP's pieces.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No tokenizer at {path}: give a vocab.txt, a tokenizer.json, or a folder with one.")
    file = _find_vocabulary(path) if path.is_dir() else path
    settings = _read_settings(file.parent / _SETTINGS_FILE)
    if file.suffix == ".txt":
        fast = build_word_piece(read_vocab_txt(file), separator=settings.kind == "wordpiece_sep")
    elif file.suffix == ".gz":
        fast = build_byte_pair(*read_open_clip_merges(file))
    elif file.suffix == ".model":
        fast = build_sentence_piece(file)
    elif file.name == "vocab.json":
        fast = build_byte_pair(*read_vocab_and_merges(file, file.parent / "merges.txt"))
    else:
        fast = _read_fast_tokenizer(file)
    return _wrap(fast, settings, file)


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int, kind: Literal["wordpiece", "wordpiece_sep"] = "wordpiece"
) -> Tokenizer:
    """Train a lower-cased WordPiece tokenizer; the same captions give the same ids, on any machine.

    `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]` take ids 0 to 4.

    Args:
        captions: texts, read once.
        vocab_size: most ids, special tokens and single characters included, at least 16; fewer when no pair of pieces
            occurs twice.
        kind: wordpiece, or wordpiece_sep to end each text with `[SEP]`.

    Raises:
        ValueError: `vocab_size` is too small, or `kind` is another.
    """
    check_at_least("vocab_size", vocab_size, 16)
    check_choice("kind", kind, Literal["wordpiece", "wordpiece_sep"])
    vocab = train_word_pieces((join_surrogates(caption) for caption in captions), vocab_size)
    fast = build_word_piece(vocab, separator=kind == "wordpiece_sep")
    return _wrap(fast, _Settings(kind), Path("trained"))


def _find_vocabulary(directory: Path) -> Path:
    names = (_FAST_FILE, "vocab.txt", "vocab.json", "bpe_simple_vocab_16e6.txt.gz", "spiece.model")
    for name in names:
        if (directory / name).is_file() and (name != "vocab.json" or (directory / "merges.txt").is_file()):
            return directory / name
    raise FileNotFoundError(
        f"{directory} holds no tokenizer: it needs one of tokenizer.json, vocab.txt, vocab.json with merges.txt, "
        "bpe_simple_vocab_16e6.txt.gz, or spiece.model."
    )


def _read_settings(path: Path) -> _Settings:
    if not path.is_file():
        return _Settings()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    settings = config_from_json(_Settings, values, where=str(path))
    if settings.kind:
        check_choice(f"{path}: kind", settings.kind, TokenizerKind)
    return settings


def _read_fast_tokenizer(path: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises no narrower class
        raise ValueError(
            f"{path} is not a file of the tokenizers package: {error}. Known are vocab.txt, tokenizer.json, vocab.json "
            "with merges.txt, bpe_simple_vocab_16e6.txt.gz, and spiece.model."
        ) from error


def _wrap(fast: FastTokenizer, settings: _Settings, source: Path) -> Tokenizer:
    fast.no_truncation()
    starts, ends = _bounds(fast)
    kinds: dict[tuple[int, int], TokenizerKind] = {}
    if isinstance(fast.model, models.WordPiece):
        kinds = {(1, 0): "wordpiece", (1, 1): "wordpiece_sep"}
    elif isinstance(fast.model, models.BPE):
        kinds = {(1, 1): "byte_pair", (0, 1): "sentence_piece"}
    elif isinstance(fast.model, models.Unigram):
        kinds = {(0, 1): "sentence_piece"}
    form = len(starts), len(ends)
    if form not in kinds:
        raise ValueError(
            f"{source} holds a {type(fast.model).__name__} model that puts {len(starts)} special tokens before a text "
            f"and {len(ends)} behind it; known are WordPiece with a start, WordPiece and BPE with a start and an end, "
            "and Unigram and BPE with an end."
        )
    found = kinds[form]
    kind = cast(TokenizerKind, settings.kind or found)
    if kind != found and {kind, found} != {"wordpiece", "wordpiece_sep"}:
        raise ValueError(f"{_SETTINGS_FILE} says kind {kind!r}, but {source} holds a {found} model.")
    end = None if kind == "wordpiece" else ends[0] if ends else fast.token_to_id(SEPARATOR)
    pad = fast.token_to_id(PAD) or 0
    if kind == "sentence_piece":
        pad = _sentence_pad(fast, source.parent, ends[0])
    unigram = isinstance(fast.model, models.Unigram)
    return Tokenizer(
        fast,
        kind,
        pad_id=pad if settings.pad_id is None else settings.pad_id,
        start_id=(starts[0] if starts else None) if settings.start_id is None else settings.start_id,
        end_id=end if settings.end_id is None else settings.end_id,
        repair=kind == "byte_pair" if settings.repair is None else settings.repair,
        canonical=unigram if settings.canonical is None else settings.canonical,
    )


def _bounds(fast: FastTokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a text."""
    encoding = fast.encode("a")
    flags = encoding.special_tokens_mask
    first = flags.index(0) if 0 in flags else len(flags)
    last = len(flags) - flags[::-1].index(0) if 0 in flags else len(flags)
    return encoding.ids[:first], encoding.ids[last:]


def _sentence_pad(fast: FastTokenizer, directory: Path, end: int) -> int:
    """Id of the pad token that a `tokenizer_config.json` names, else the end, with which SigLIP pads."""
    try:
        named = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
        found = fast.token_to_id(named["content"] if isinstance(named, dict) else named)
    except (OSError, ValueError, KeyError, TypeError):
        return end
    return end if found is None else found
