"""What a training batch holds, and how any rows of any batch are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from ...config import DataConfig, Decoder, StageConfig
from .._pair import PairSource
from ..image._crop import DRAWS
from ..image._image import ImageError, training_image
from ..io._remote import RemoteError
from ..text._texts import Caption, TextReader
from ._order import Order, sample_draws


_Pixels = UInt8[np.ndarray, "height width 3"]

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
    """Class of each token's word: 0 noun, 1 adjective, 2 verb, 3 other."""
    faults: tuple[Fault, ...]


class Arrays(NamedTuple):
    """Where the rows of a part of a batch are written to."""

    pixels: UInt8[np.ndarray, "rows height width 3"]
    tokens: Int32[np.ndarray, "rows length"]
    word_class: UInt8[np.ndarray, "rows length"]


class Part(NamedTuple):
    """Some rows of this process's share of one step."""

    step: int
    first: int
    stop: int


@dataclass(frozen=True)
class BatchReader:
    """Reads any rows of any step: a pure function of its fields, so threads, processes and restarts do not matter."""

    pairs: PairSource
    texts: TextReader
    data: DataConfig
    stage: StageConfig
    decoder: Decoder
    order: Order
    process_index: int
    process_count: int

    @property
    def rows(self) -> int:
        """Rows of a step that belong to this process."""
        return self.stage.batch_size // self.process_count

    def allocate(self, rows: int) -> Arrays:
        """Arrays for so many rows; each is one block of memory, as copies to a device want it."""
        size, length = self.stage.image_size, self.data.caption_tokens
        return Arrays(
            np.empty((rows, size, size, 3), np.uint8),
            np.empty((rows, length), np.int32),
            np.empty((rows, length), np.uint8),
        )

    def read(self, part: Part, into: Arrays, note: Callable[[int], None]) -> tuple[Fault, ...]:
        """Read the rows of a part.

        Args:
            part: which rows.
            into: as many rows as the part has.
            note: called with each row before it is read, so that others can see where the reader is.

        Raises:
            ValueError: too many pictures in a row cannot be used.
        """
        positions = self._positions(part)
        chosen, epochs = self.order.pairs(positions)
        draws = sample_draws(chosen, epochs, self.order.seed, DRAWS + 1)
        captions: list[Caption] = []
        faults: list[Fault] = []
        for place, row in enumerate(range(part.first, part.stop)):
            note(row)
            result = self._read_pair(int(chosen[place]), draws[place], row)
            if isinstance(result, Fault):
                result = self._read_substitute(int(positions[place]), result, faults)
            into.pixels[place], caption = result
            captions.append(caption)
        into.tokens[:], into.word_class[:] = self.texts.read(captions, self.data.caption_tokens)
        return tuple(faults)

    def describe(self, part: Part, row: int) -> str:
        """Which pair a row is, for a message."""
        index = int(self.order.pairs(self._positions(Part(part.step, row, row + 1)))[0][0])
        return f"{self.pairs.key(index)} (pair {index}, row {row} of step {part.step})"

    def _positions(self, part: Part) -> np.ndarray:
        """Places of the rows in the endless sequence of samples."""
        first = part.step * self.stage.batch_size + self.process_index * self.rows
        return np.arange(first + part.first, first + part.stop)

    def _read_pair(self, index: int, draws: Float64[np.ndarray, " draws"], row: int) -> tuple[_Pixels, Caption] | Fault:
        try:
            pair = self.pairs[index]
        except RemoteError:
            # A server that is down is no fault of this pair: the run ends rather than train on others.
            raise
        except OSError as error:
            return Fault(f"pair {index}", str(error), row)
        try:
            pixels = training_image(
                pair.image,
                self.stage.image_size,
                self.stage.augment,
                draws=draws[:DRAWS].tolist(),
                max_pixels=self.data.max_pixels,
                decoder=self.decoder,
            )
        except ImageError as error:
            return Fault(pair.key, str(error), row)
        number = int(draws[DRAWS] * len(pair.captions))
        return pixels, Caption(index, number, pair.captions[number])

    def _read_substitute(self, position: int, fault: Fault, faults: list[Fault]) -> tuple[_Pixels, Caption]:
        """The pair half an epoch on, or the first usable one after it: never one of the same batch in a large set."""
        chosen, epochs = self.order.substitutes(position, _MOST_SUBSTITUTES)
        draws = sample_draws(chosen, epochs, self.order.seed, DRAWS + 1)
        faults.append(fault)
        for index, numbers in zip(chosen, draws, strict=True):
            result = self._read_pair(int(index), numbers, fault.row)
            if not isinstance(result, Fault):
                return result
            faults.append(result)
        raise ValueError(
            f"{_MOST_SUBSTITUTES} pictures in a row cannot be used, the last is {faults[-1].key}: {faults[-1].reason}. "
            "Check that the data is complete and holds pictures."
        )
