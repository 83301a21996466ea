"""WordPiece vocabularies: BERT's `vocab.txt`, and new ones trained on captions."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import models, normalizers, pre_tokenizers, processors, Tokenizer as FastTokenizer, trainers


PAD, UNKNOWN, CLASS, SEPARATOR, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
_LARGEST_ALPHABET = 1000
_LONGEST_WORD = 100


def build_word_piece(vocab: dict[str, int], *, separator: bool) -> FastTokenizer:
    """An uncased BERT tokenizer over a vocabulary.

    Cleans control characters, spaces out CJK, strips accents, lower-cases, splits at blanks and punctuation, and takes
    the longest matching piece first; a word of more than 100 characters becomes `[UNK]` (Devlin et al., arXiv
    1810.04805, tokenization.py).

    Args:
        vocab: id of each piece.
        separator: end each text with `[SEP]`, as Hugging Face does; CLIPA does not.

    Raises:
        ValueError: `[PAD]`, `[UNK]`, `[CLS]`, or `[SEP]` where needed, is not in the vocabulary.
    """
    needed = [PAD, UNKNOWN, CLASS] + ([SEPARATOR] if separator else [])
    missing = [token for token in needed if token not in vocab]
    if missing:
        raise ValueError(
            f"A WordPiece vocabulary needs {', '.join(needed)}; these {len(vocab)} pieces lack {', '.join(missing)}."
        )
    fast = FastTokenizer(
        models.WordPiece(
            vocab, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUATION, max_input_chars_per_word=_LONGEST_WORD
        )
    )
    fast.normalizer, fast.pre_tokenizer = _bert_steps()
    fast.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    ends = [(token, vocab[token]) for token in ([CLASS, SEPARATOR] if separator else [CLASS])]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {SEPARATOR}" if separator else f"{CLASS} $A", special_tokens=ends
    )
    return fast


def read_vocab_txt(path: Path) -> dict[str, int]:
    """Read BERT's `vocab.txt`: one piece per line, its id the line number from 0.

    Raises:
        ValueError: the file is not UTF-8, or lists a piece twice.
    """
    try:
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file of one piece per line: {error}.") from error
    vocab = {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        piece, count = Counter(piece.rstrip("\r") for piece in pieces).most_common(1)[0]
        raise ValueError(f"{path} lists {piece!r} {count} times; each line of a vocabulary is a piece of its own.")
    return vocab


def train_word_pieces(captions: Iterable[str], vocab_size: int) -> dict[str, int]:
    """Learn WordPiece's vocabulary from captions: the same captions give the same pieces, in any process.

    The trainer of the `tokenizers` package numbers continuation characters in the order of a randomly seeded hash
    table and breaks ties by these numbers. Handing it the whole alphabet in sorted order removes that chance.

    Args:
        captions: texts, read once.
        vocab_size: most pieces, special tokens included; fewer when no pair of pieces occurs twice.
    """
    words = _count_words(captions)
    alphabet = _frequent_characters(words, (vocab_size - len(SPECIAL_TOKENS)) // 2)
    words = {word: count for word, count in words.items() if alphabet.issuperset(word)}
    first = sorted({word[0] for word in words})
    continuing = sorted({CONTINUATION + character for word in words for character in word[1:]})
    fast = FastTokenizer(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=_LONGEST_WORD))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *first, *continuing],
        limit_alphabet=_LARGEST_ALPHABET,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    fast.train_from_iterator(_repeat(words), trainer)
    return fast.get_vocab(with_added_tokens=True)


def _bert_steps() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    return normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()


def _count_words(captions: Iterable[str]) -> dict[str, int]:
    normalizer, splitter = _bert_steps()
    counts: Counter[str] = Counter()
    for caption in captions:
        words = splitter.pre_tokenize_str(normalizer.normalize_str(caption))
        counts.update(word for word, _ in words if len(word) <= _LONGEST_WORD)
    return dict(sorted(counts.items()))


def _frequent_characters(words: dict[str, int], most: int) -> set[str]:
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return set(ranked[: min(most, _LARGEST_ALPHABET)])


def _repeat(words: dict[str, int], chunk: int = 1000) -> Iterator[str]:
    for word, count in words.items():
        for start in range(0, count, chunk):
            yield " ".join([word] * min(chunk, count - start))
