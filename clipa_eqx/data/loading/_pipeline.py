"""Captioned images to training batches, read ahead."""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, cast, NamedTuple, Protocol, runtime_checkable

from ..._checks import check_at_least, check_between
from ...config import DataConfig, StageConfig
from .._pair import PairSource
from ..image._fast_jpeg import find_decoder
from ..text._texts import TextReader
from ._batch import Arrays, Batch, BatchReader, Fault, Part
from ._order import Order
from ._workers import ReaderError, Workers


_ENDLESS = 1 << 62
_PART_ROWS = 128
"""Rows that a reader takes at once: one element of Grain's, whose cost is per element. All readers work on the oldest
batch, so the first one comes soon; the fixed cost of a part, 0.2 ms, is a hundredth of the decoding of its pictures."""
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


class _Read(NamedTuple):
    """A part of a batch that is read."""

    part: Part
    into: Arrays
    """The arrays of the whole batch."""
    faults: tuple[Fault, ...]


class _Parts:
    """The parts of all batches by index, for Grain to read ahead. Reading one writes its rows into its batch."""

    def __init__(self, reader: BatchReader, workers: Workers) -> None:
        self._reader, self._workers = reader, workers
        self.per_batch = -(-reader.rows // _PART_ROWS)
        self._batches: dict[int, tuple[Arrays, int]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> _Read:
        step, place = divmod(index, self.per_batch)
        first = place * _PART_ROWS
        part = Part(step, first, min(first + _PART_ROWS, self._reader.rows))
        arrays = self._batch(step)
        rows = Arrays(*(array[part.first : part.stop] for array in arrays))
        return _Read(part, arrays, self._workers.read(part, rows))

    def _batch(self, step: int) -> Arrays:
        """The arrays of a batch, the same for all of its parts; forgotten once the last of them has begun."""
        with self._lock:
            arrays, left = self._batches.pop(step, None) or (self._reader.allocate(self._reader.rows), self.per_batch)
            if left > 1:
                self._batches[step] = arrays, left - 1
            return arrays


class _ReadAhead:
    """Batches in order. Grain reads `data.prefetch` of them ahead, and no more; here is watched that it gets on."""

    def __init__(self, reader: BatchReader, start_step: int) -> None:
        # Grain brings JAX along, which reader processes do not need.
        import grain

        self._timeout_s = reader.data.stall_timeout_s
        self._workers = Workers(
            reader,
            threads=reader.data.threads,
            processes=reader.data.processes,
            most_rows=min(_PART_ROWS, reader.rows),
        )
        parts = _Parts(reader, self._workers)
        self._parts_per_batch = parts.per_batch
        # Grain refills its buffer before it hands out the part it took.
        ahead = max(1, reader.data.prefetch * parts.per_batch - 1)
        options = grain.ReadOptions(num_threads=self._workers.count, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(parts)[start_step * parts.per_batch :].to_iter_dataset(options)
        self._read: Iterator[_Read] = iter(dataset)
        self._wanted: queue.SimpleQueue[Iterator[_Read] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[_Read | BaseException] = queue.SimpleQueue()
        # A daemon, since waiting for Grain cannot be given up.
        threading.Thread(target=_take, args=(self._wanted, self._found), daemon=True).start()
        # Also when nobody refers to this any more, and before Python ends.
        self._stop = weakref.finalize(self, _stop_reading, self._workers, self._wanted, self._read)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        reads = [self._next_part() for _ in range(self._parts_per_batch)]
        return Batch(*reads[0].into, tuple(fault for read in reads for fault in read.faults))

    def close(self) -> None:
        """Stop the readers."""
        self._stop()

    def _next_part(self) -> _Read:
        """Wait for the next part, as long as any reader gets on.

        Raises:
            ReaderError: none does.
        """
        if not self._stop.alive:
            raise ValueError("These batches were closed.")
        self._wanted.put(self._read)
        places, since = self._workers.places(), time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                found = self._found.get(timeout=min(_LOOK_S, self._timeout_s))
                break
            now = time.monotonic()
            if (current := self._workers.places()) != places:
                places, since = current, now
            elif now - since >= self._timeout_s:
                doing = self._workers.describe()
                self.close()
                raise ReaderError(
                    f"Nothing was read for {self._timeout_s:g} s. Check the disk or network below data.train, or raise "
                    f"data.stall_timeout_s.\n{doing}"
                )
        if isinstance(found, BaseException):
            raise found
        return found


def _stop_reading(workers: Workers, wanted: "queue.SimpleQueue[Iterator[_Read] | None]", read: Iterator[_Read]) -> None:
    workers.close()
    wanted.put(None)
    cast(Any, read).close()


def _take(
    wanted: "queue.SimpleQueue[Iterator[_Read] | None]", found: "queue.SimpleQueue[_Read | BaseException]"
) -> None:
    """Take a part whenever one is wanted."""
    while (read := wanted.get()) is not None:
        try:
            found.put(next(read))
        except BaseException as error:  # whatever it is, who waits for the part must see it
            found.put(error)
