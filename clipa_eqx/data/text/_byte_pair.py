"""CLIP's byte-pair vocabulary, in Hugging Face's two files or in open_clip's one."""

import gzip
import itertools
import json
from pathlib import Path

from tokenizers import models, normalizers, pre_tokenizers, processors, Regex, Tokenizer as FastTokenizer


WORD_END = "</w>"
_BOUNDS = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
_CLIP_MERGES = 49152 - 256 - 2
"""open_clip's file lists more merges than CLIP uses: 512 byte symbols + 48894 merges + 2 bounds = 49408 ids."""
# Python's `regex`, which OpenAI and open_clip use, ignores case: a long s counts as s, and the combining iota U+0345 as
# a letter that is then none.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"

Merge = tuple[str, str]


def build_byte_pair(vocab: dict[str, int], merges: list[Merge]) -> FastTokenizer:
    """CLIP's lower-cased byte-pair tokenizer (Radford et al., arXiv 2103.00020, simple_tokenizer.py).

    It does what Hugging Face's fast CLIP tokenizer does. OpenAI's and open_clip's also repair the text first, see
    `repair_text`; the ids of plain text are the same.

    Args:
        vocab: id of each piece; the last piece of a word ends in `</w>`.
        merges: pairs of pieces, the one to merge first in front.

    Raises:
        ValueError: the vocabulary has no start and end token, or lacks a piece that a merge names.
    """
    bounds = next((pair for pair in _BOUNDS if set(pair) <= vocab.keys()), None)
    if bounds is None:
        raise ValueError(
            f"A CLIP vocabulary has the tokens {' and '.join(_BOUNDS[0])}, or {' and '.join(_BOUNDS[1])}; "
            f"these {len(vocab)} pieces have neither pair."
        )
    start, end = bounds
    lost = [pair for pair in merges if not {*pair, "".join(pair)} <= vocab.keys()]
    if lost:
        raise ValueError(f"{len(lost)} merges name pieces outside the vocabulary, the first is {' '.join(lost[0])!r}.")
    fast = FastTokenizer(
        models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=end)
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.add_special_tokens([start, end])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    return fast


def read_vocab_and_merges(vocab_path: Path, merges_path: Path) -> tuple[dict[str, int], list[Merge]]:
    """Read Hugging Face's `vocab.json` (id of each piece) and `merges.txt` (a header, then one pair per line).

    Raises:
        ValueError: one of the files does not have that form.
    """
    try:
        vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{vocab_path} is not a JSON file: {error}.") from error
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise ValueError(f"{vocab_path} must be a JSON object that gives each piece its id.")
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges_path} is not a UTF-8 text file: {error}.") from error
    return vocab, _parse_merges(lines[1:] if lines[0].startswith("#version") else lines, merges_path)


def read_open_clip_merges(path: Path) -> tuple[dict[str, int], list[Merge]]:
    """Read open_clip's `bpe_simple_vocab_16e6.txt.gz`, from whose merges the vocabulary follows.

    Ids go to the 256 byte symbols, the same at the end of a word, one piece per merge, then the two bounds.

    Raises:
        ValueError: the file is not gzipped text of one pair per line.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [line.rstrip("\n") for line in itertools.islice(file, 1, 1 + _CLIP_MERGES)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a gzipped list of merges: {error}.") from error
    merges = _parse_merges(lines, path)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*symbols, *(symbol + WORD_END for symbol in symbols), *("".join(pair) for pair in merges), *_BOUNDS[0]]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def _parse_merges(lines: list[str], path: Path) -> list[Merge]:
    merges: list[Merge] = []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        pair = line.split()
        if len(pair) != 2:
            raise ValueError(f"{path} line {number} must be two pieces and a blank between them, got {line!r}.")
        merges.append((pair[0], pair[1]))
    return merges
