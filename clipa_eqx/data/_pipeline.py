"""Captioned images to training batches, read ahead."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from .._checks import check_at_least, check_between
from ..config import DataConfig, StageConfig
from ._batch import Arrays, Batch, BatchReader, Fault, Part
from ._fast_jpeg import find_decoder
from ._order import Order
from ._pair import PairSource
from ._readers import ReaderError, Readers
from ._texts import TextReader


_PART_ROWS = 128
"""Rows that a reader takes at once. All readers work on the oldest batch, so the first one comes soon; the fixed cost
of a part, 0.2 ms, is a hundredth of the decoding of its pictures."""
_LOOK_S = 1.0
"""How often a waiting training loop looks whether its readers get on."""


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator of batches, read ahead until it is closed."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Stop the readers. No batch can be taken afterwards."""
        ...


def training_batches(
    pairs: PairSource,
    texts: TextReader,
    data: DataConfig,
    stage: StageConfig,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> BatchIterator:
    """Endless training batches from a step on.

    The batch of a step is a function of (pairs, texts, seed, step) and the decoder alone: it does not depend on threads
    and reader processes, on where the run was started or resumed, nor, taken over all processes, on how many share it.
    Pairs come in a new global order in each epoch; a batch may span two epochs. Sets that are mixed by weight have
    epochs of their own. A pair whose picture cannot be used is replaced by the pair half an epoch on in the same order,
    or the first usable one after that, and reported in the batch's `faults`. Of several captions each epoch draws one.

    Args:
        pairs: captioned images.
        texts: turns captions into token ids with word classes, see [`open_texts`][clipa_eqx.data.open_texts].
        data: length of captions, readers, prefetch, decoder, largest picture.
        stage: batch size over all processes, image size and augmentation.
        seed: of order and crops, at least 0.
        process_index: which process this is, from 0.
        process_count: processes that share each batch; divides the batch size.
        start_step: steps already done.

    Raises:
        ValueError: the batch does not split over the processes. While iterating: 64 pictures in a row cannot be used.
        ImportError: the decoder that `data` asks for is not installed.
        ReaderError: while iterating: a reader process died, or no reader got on for `data.stall_timeout_s`.
    """
    check_at_least("seed", seed, 0)
    check_at_least("start_step", start_step, 0)
    check_at_least("process_count", process_count, 1)
    check_between("process_index", process_index, 0, process_count - 1)
    if stage.batch_size % process_count:
        raise ValueError(
            f"batch_size={stage.batch_size} does not split over {process_count} processes: make it a multiple of them."
        )
    order = Order.of(pairs, seed)
    reader = BatchReader(pairs, texts, data, stage, find_decoder(data), order, process_index, process_count)
    return _ReadAhead(reader, start_step)


class _Waiting(NamedTuple):
    """A batch that is being read: its arrays, and its parts in order."""

    arrays: Arrays
    parts: "list[tuple[Part, concurrent.futures.Future[tuple[Fault, ...]]]]"


class _ReadAhead:
    """Batches in order; `data.prefetch` of them are read or ready at a time, and no more."""

    def __init__(self, reader: BatchReader, start_step: int) -> None:
        self._reader, self._next_step = reader, start_step
        self._timeout_s = reader.data.stall_timeout_s
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._readers: Readers | None = Readers(
            reader,
            threads=reader.data.threads,
            processes=reader.data.processes,
            most_rows=min(_PART_ROWS, reader.rows),
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._readers is None:
            raise ValueError("These batches were closed.")
        while len(self._waiting) < self._reader.data.prefetch:
            self._waiting.append(self._begin(self._readers, self._next_step))
            self._next_step += 1
        batch = self._waiting.popleft()
        faults: list[Fault] = []
        for part, done in batch.parts:
            self._wait(self._readers, part, done)
            faults += done.result()
        return Batch(*batch.arrays, tuple(faults))

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop the readers."""
        # Absent when starting them failed.
        readers, self._readers = getattr(self, "_readers", None), None
        if readers is not None:
            self._waiting.clear()
            readers.close()

    def _begin(self, readers: Readers, step: int) -> _Waiting:
        rows = self._reader.rows
        arrays = self._reader.allocate(rows)
        parts = [Part(step, first, min(first + _PART_ROWS, rows)) for first in range(0, rows, _PART_ROWS)]
        # Readers fill the batch itself: nothing is put together afterwards.
        views = [Arrays(*(array[part.first : part.stop] for array in arrays)) for part in parts]
        return _Waiting(arrays, [(part, readers.submit(part, view)) for part, view in zip(parts, views, strict=True)])

    def _wait(self, readers: Readers, part: Part, done: "concurrent.futures.Future[tuple[Fault, ...]]") -> None:
        """Wait for a part, as long as it gets on.

        Raises:
            ReaderError: it does not.
        """
        row, since = readers.row_of(part), time.monotonic()
        while not concurrent.futures.wait([done], min(_LOOK_S, self._timeout_s)).done:
            now = time.monotonic()
            if (current := readers.row_of(part)) != row:
                row, since = current, now
            elif now - since >= self._timeout_s:
                doing = readers.describe()
                self.close()
                raise ReaderError(
                    f"Nothing was read for {self._timeout_s:g} s. Check the disk or network below data.train, or raise "
                    f"data.stall_timeout_s.\n{doing}"
                )
