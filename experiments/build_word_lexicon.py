"""Build clipa_eqx/data/text/word_class.txt.gz: which class each English word most often has.

    pip install textblob
    python experiments/build_word_lexicon.py

Reads Brill's lexicon out of the textblob package, which gives each spelling its most frequent Penn Treebank tag. The
lower-case spelling of a word decides; a word that the lexicon has only capitalised takes the commonest class of its
spellings. Words with anything but the letters a to z are left out: tokenizers split them. The file, gzipped, has four
lines of sorted words: nouns, adjectives, verbs, others.
"""

import gzip
import importlib.util
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro


CLASSES = ("NN", "JJ", "VB")


@dataclass(frozen=True)
class BuildWordLexicon:
    """Reduce Brill's lexicon to one class per word."""

    lexicon: Path | None = None
    """Brill's lexicon, one "word TAG" per line; by default the one of the installed textblob package."""
    output: Path = Path(__file__).parents[1] / "clipa_eqx" / "data" / "text" / "word_class.txt.gz"
    """File to write."""


def find_lexicon() -> Path:
    """The lexicon inside the installed textblob package, which is not imported."""
    package = importlib.util.find_spec("textblob")
    if package is None or package.origin is None:
        raise FileNotFoundError("textblob is not installed: run `pip install textblob`, or give --lexicon PATH.")
    return Path(package.origin).parent / "en" / "en-lexicon.txt"


def read_spellings(path: Path) -> dict[str, dict[str, int]]:
    """Class of each spelling, by lower-case word; lines that start with ;;; are the lexicon's header."""
    words: dict[str, dict[str, int]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        spelling, _, tag = line.strip().partition(" ")
        word = spelling.lower()
        if not line.startswith(";;;") and word.isascii() and word.isalpha() and tag:
            words[word].setdefault(spelling, CLASSES.index(tag[:2]) if tag[:2] in CLASSES else len(CLASSES))
    return words


def choose_class(word: str, spellings: dict[str, int]) -> int:
    """The class of the lower-case spelling, else the commonest one, the lowest among equals."""
    if word in spellings:
        return spellings[word]
    counts = Counter(spellings.values())
    return min(counts, key=lambda kind: (-counts[kind], kind))


def main(args: BuildWordLexicon) -> None:
    """Write the file and print how many words each class has."""
    lines: list[list[str]] = [[] for _ in range(len(CLASSES) + 1)]
    for word, spellings in sorted(read_spellings(args.lexicon or find_lexicon()).items()):
        lines[choose_class(word, spellings)].append(word)
    text = "\n".join(" ".join(words) for words in lines) + "\n"
    args.output.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
    counts = dict(zip(("nouns", "adjectives", "verbs", "others"), map(len, lines), strict=True))
    print(json.dumps({**counts, "bytes": args.output.stat().st_size}))


if __name__ == "__main__":
    main(tyro.cli(BuildWordLexicon))
