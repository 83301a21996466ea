"""Opening captioned images, whatever their layout."""

from collections.abc import Callable
from pathlib import Path

from .._checks import check_between
from ..config import DataConfig, FilterConfig
from ._files import open_csv, open_folder
from ._layouts import find_layout, find_layout_shards, pair_fields
from ._mixture import MixedPairs
from ._pair import PairSource
from .index._filter import FilteredPairs
from .index._index import load_indexes
from .index._indexing import build_indexes, ShardWork
from .index._shards import ShardPairs
from .text._classifier import word_classifier
from .text._text_cache import TextRules
from .text._tokenizer import Tokenizer


def open_pairs(config: DataConfig) -> PairSource:
    """Open the training pairs that a config names.

    webdataset: tars as img2dataset writes them. tfrecord, array-record: records of tf.train.Example, as img2dataset and
    TFDS write them. parquet, arrow: tables with images inside, as img2dataset and `datasets` write them. All of these
    are given as a shard, a folder of shards, a glob, or a name with a range such as `{00000..00010}.tar`; a shard that
    is cut short gives what it holds whole. csv: a .csv or .tsv file with a header. folder: images beside text files of
    the same name.

    Nothing is dropped in silence: `.skipped` counts what cannot be used. Pictures are not looked at here; a broken one
    is found when it is decoded.

    Args:
        config: where the pairs are and how they are laid out.

    Raises:
        FileNotFoundError: nothing lies at the path.
        ValueError: the path is empty, or holds no pair.
    """
    if config.mixture:
        sources = {name: _open_set(name, config) for name in config.mixture}
        return MixedPairs(sources, config.mixture_weights)
    if not config.train:
        raise ValueError("data.train is empty: give a folder or glob of shards, a .csv or .tsv file, or a folder.")
    return _open_set(config.train, config)


def index_pairs(
    config: DataConfig,
    tokenizer: Tokenizer | None = None,
    *,
    processes: int,
    part: tuple[int, int] = (0, 1),
    report: Callable[[int, int], None],
) -> tuple[PairSource, int]:
    """Build the indexes that [`open_pairs`][clipa_eqx.data.open_pairs] would miss, with several processes.

    Args:
        config: where the pairs are, how they are laid out, and how pieces of captions get their classes.
        tokenizer: splits the captions, to keep their tokens beside the index; None: tokens are not kept.
        processes: how many read at once, at least 1.
        part: number of a part and number of parts, for several machines that share the shards; (0, 1) is all.
        report: called with the shards done and the shards to do.

    Returns:
        The pairs, those of this part alone, and the number of shards for which something was built.

    Raises:
        OSError: some shards could not be indexed.
        ValueError: there are fewer shards than parts, or they hold no pair; tokens are to be kept of single files.
    """
    found = find_layout_shards(config.train, config)
    if found is None:
        if tokenizer is not None:
            raise ValueError(f"Tokens are kept beside the index of shards, and {config.train} has none.")
        return open_pairs(config), 0
    shards, format = found
    number, count = part
    check_between("part", number, 0, count - 1)
    if count > len(shards):
        raise ValueError(f"{len(shards)} shards do not split into {count} parts: use at most as many parts as shards.")
    shards = shards[number::count]
    rules = None if tokenizer is None else TextRules(tokenizer, word_classifier(tokenizer, config.word_class))
    work = ShardWork(format, rules)
    indexes = load_indexes(shards, format)
    todo = [shard for shard, index in zip(shards, indexes, strict=True) if not work.is_done(index)]
    if todo:
        build_indexes(todo, work, processes=processes, report=lambda done: report(done, len(todo)))
    return ShardPairs(shards, format), len(todo)


def _open_set(train: str, config: DataConfig) -> PairSource:
    found = find_layout_shards(train, config)
    filtered = config.filter != FilterConfig()
    if found is not None:
        pairs = ShardPairs(*found)
        return FilteredPairs(pairs, config.filter) if filtered else pairs
    path = Path(train).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {train!r}, which data.train or data.mixture names.")
    if filtered:
        raise ValueError(f"data.filter needs an index, which {train} has not: leave out the filter, or use shards.")
    if find_layout(path, config) == "csv":
        return open_csv(path, separator=config.csv_separator, fields=pair_fields(config))
    return open_folder(path)
