"""`clipa data train-tokenizer`: a vocabulary out of captions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._checks import check_at_least
from ._data_files import Files, PairFiles, print_table, sample


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a lower-cased WordPiece vocabulary on the captions of a data set."""

    data: str
    """Image-text pairs: a folder or glob of shards, a .csv/.tsv file, or a folder of image and .txt files."""
    out: Path
    """Folder for tokenizer.json and clipa_tokenizer.json; give it as --data.tokenizer to `clipa train`."""
    vocab_size: int = 32000
    """Most entries, special tokens and single characters included."""
    captions: int = 1_000_000
    """Pairs whose captions to learn from, evenly spread over the data; all of them when there are fewer."""
    files: Files = field(default_factory=PairFiles)
    """How the pairs are laid out."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Read captions, train, save."""
        check_at_least("captions", self.captions, 1)
        from ..data import train_tokenizer

        pairs = self.files.open(self.data)
        captions = [caption for place in sample(pairs, self.captions) for caption in pairs.captions(place)]
        tokenizer = train_tokenizer(captions, vocab_size=self.vocab_size)
        tokenizer.save(self.out)
        result = {
            "tokenizer": str(self.out),
            "vocab_size": tokenizer.vocab_size,
            "captions": len(captions),
        }
        print_table("tokenizer", result)
        return result
