"""Captioned images to training batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from .._checks import check_at_least, check_between
from ..config import DataConfig, StageConfig
from ._image import DRAWS, ImageError, training_image
from ._order import sample_draws, shuffled
from ._pair import PairSource


_Pixels = UInt8[np.ndarray, "height width 3"]

_ENDLESS = 1 << 62
_MOST_SUBSTITUTES = 64
"""Pictures in a row that may be broken; were nine of ten broken, one sample in a thousand would need more."""


@dataclass(frozen=True)
class Fault:
    """A record that could not be used for training, and was replaced."""

    key: str
    """Which record."""
    reason: str
    row: int
    """Row of this process's batch in which another pair stands instead."""


@dataclass(frozen=True)
class Batch:
    """The rows of one training step that belong to this process."""

    pixels: UInt8[np.ndarray, "batch height width 3"]
    tokens: Int32[np.ndarray, "batch length"]
    word_class: UInt8[np.ndarray, "batch length"]
    """Class of each token's vocabulary entry; see `word_classes`."""
    faults: tuple[Fault, ...]


@runtime_checkable
class CaptionEncoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs."""
        ...

    def encode_batch(self, captions: Sequence[str], length: int) -> Int32[np.ndarray, "batch length"]:
        """Token ids of captions, cut or padded to `length`."""
        ...


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator of batches, read ahead by threads until it is closed."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Stop the reader threads. No batch can be taken afterwards."""
        ...


def training_batches(
    pairs: PairSource,
    tokenizer: CaptionEncoder,
    data: DataConfig,
    stage: StageConfig,
    *,
    word_class_table: UInt8[np.ndarray, " vocab"],
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> BatchIterator:
    """Endless training batches from a step on.

    The batch of a step is a function of (pairs, tokenizer, seed, step) alone: it does not depend on threads, on where
    the run was started or resumed, nor, taken over all processes, on how many share it. Pairs come in a new global
    order in each epoch; a batch may span two epochs. A pair whose picture cannot be used is replaced by the pair half
    an epoch on in the same order, or the first usable one after that, and reported in the batch's `faults`. Of several
    captions each epoch draws one.

    Args:
        pairs: captioned images.
        tokenizer: turns captions into token ids.
        data: length of captions, threads, prefetch, largest picture.
        stage: batch size over all processes, image size and augmentation.
        word_class_table: class of each vocabulary entry.
        seed: of order and crops, at least 0.
        process_index: which process this is, from 0.
        process_count: processes that share each batch; divides the batch size.
        start_step: steps already done.

    Raises:
        ValueError: the batch does not split over the processes, or the table is shorter than the vocabulary. While
            iterating: 64 pictures in a row cannot be used.
    """
    # Grain brings JAX along where that is installed; reading data does not need it.
    import grain

    check_at_least("seed", seed, 0)
    check_at_least("start_step", start_step, 0)
    check_at_least("process_count", process_count, 1)
    check_between("process_index", process_index, 0, process_count - 1)
    if stage.batch_size % process_count:
        raise ValueError(
            f"batch_size={stage.batch_size} does not split over {process_count} processes: make it a multiple of them."
        )
    if len(word_class_table) < tokenizer.vocab_size:
        raise ValueError(
            f"word_class_table has {len(word_class_table)} entries for a vocabulary of {tokenizer.vocab_size}: make it "
            "with word_classes(tokenizer)."
        )
    batches = _Batches(pairs, tokenizer, data, stage, word_class_table, seed, process_index, process_count)
    # One element is one batch: Grain's cost is per element, and its default options would read 500 ahead.
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    dataset = grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options)
    return cast(BatchIterator, iter(dataset))


@dataclass(frozen=True)
class _Batches:
    """Batch after batch, by step."""

    pairs: PairSource
    tokenizer: CaptionEncoder
    data: DataConfig
    stage: StageConfig
    word_class_table: UInt8[np.ndarray, " vocab"]
    seed: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        rows = self.stage.batch_size // self.process_count
        first = index * self.stage.batch_size + self.process_index * rows
        positions = np.arange(first, first + rows)
        chosen = shuffled(positions, len(self.pairs), self.seed)
        draws = sample_draws(chosen, positions // len(self.pairs), self.seed, DRAWS + 1)
        size = self.stage.image_size
        pixels = np.empty((rows, size, size, 3), np.uint8)
        captions: list[str] = []
        faults: list[Fault] = []
        for row in range(rows):
            result = self._read(int(chosen[row]), draws[row], row)
            if isinstance(result, Fault):
                result = self._read_substitute(int(positions[row]), result, faults)
            pixels[row], caption = result
            captions.append(caption)
        tokens = self.tokenizer.encode_batch(captions, self.data.caption_tokens)
        return Batch(pixels, tokens, self.word_class_table[tokens], tuple(faults))

    def _read(self, index: int, draws: Float64[np.ndarray, " draws"], row: int) -> tuple[_Pixels, str] | Fault:
        try:
            pair = self.pairs[index]
        except OSError as error:
            return Fault(f"pair {index}", str(error), row)
        try:
            pixels = training_image(
                pair.image,
                self.stage.image_size,
                self.stage.augment,
                draws=draws[:DRAWS].tolist(),
                max_pixels=self.data.max_pixels,
            )
        except ImageError as error:
            return Fault(pair.key, str(error), row)
        return pixels, pair.captions[int(draws[DRAWS] * len(pair.captions))]

    def _read_substitute(self, position: int, fault: Fault, faults: list[Fault]) -> tuple[_Pixels, str]:
        """The pair half an epoch on, or the first usable one after it: never one of the same batch in a large set."""
        count = len(self.pairs)
        epoch, place = divmod(position, count)
        others = epoch * count + (place + count // 2 + np.arange(_MOST_SUBSTITUTES)) % count
        chosen = shuffled(others, count, self.seed)
        draws = sample_draws(chosen, others // count, self.seed, DRAWS + 1)
        faults.append(fault)
        for index, numbers in zip(chosen, draws, strict=True):
            result = self._read(int(index), numbers, fault.row)
            if not isinstance(result, Fault):
                return result
            faults.append(result)
        raise ValueError(
            f"{_MOST_SUBSTITUTES} pictures in a row cannot be used, the last is {faults[-1].key}: {faults[-1].reason}. "
            "Check that the data is complete and holds pictures."
        )
