"""Many short rows of different lengths as one array, cut and padded to a matrix without a loop over rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer


class Ragged(NamedTuple):
    """Rows of numbers, one after another."""

    values: Integer[np.ndarray, " values"]
    counts: Int64[np.ndarray, " rows"]
    """Numbers in each row."""

    @property
    def ends(self) -> Int64[np.ndarray, " rows"]:
        """Where in `values` each row ends."""
        return np.cumsum(self.counts)

    def first_of_rows(self) -> Bool[np.ndarray, " values"]:
        """Whether each number is the first of its row."""
        first = np.zeros(len(self.values), bool)
        first[(self.ends - self.counts)[self.counts > 0]] = True
        return first

    def cut(self, most: int | Int64[np.ndarray, " rows"]) -> "Ragged":
        """The first numbers of each row."""
        kept = np.minimum(self.counts, most)
        return Ragged(self.values[self._places(kept)], kept)

    def write(self, into: Integer[np.ndarray, "rows columns"]) -> None:
        """Write each row from the first column of a matrix on, as far as it fits; the rest stays as it is."""
        kept = np.minimum(self.counts, into.shape[1])
        rows = np.repeat(np.arange(len(kept)), kept)
        into[rows, _within_rows(kept)] = self.values[self._places(kept)]

    def _places(self, kept: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " kept"]:
        return np.repeat(self.ends - self.counts, kept) + _within_rows(kept)


def _within_rows(counts: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " values"]:
    """0, 1, 2, ... anew in each row."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
