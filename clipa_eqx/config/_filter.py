"""Which pairs of a data set are used."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._checks import check_at_least


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
_COMPARISON = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|=|<|>)\s*([^<>=!].*?)\s*")


@dataclass(frozen=True)
class Comparison:
    """A condition on a field of metadata."""

    field: str
    operator: str
    """One of <, <=, >, >=, = and !=."""
    value: str

    @property
    def compare(self) -> Callable[[Any, Any], Any]:
        """The operator as a function of the field and the value."""
        return _OPERATORS[self.operator]

    @property
    def number(self) -> float | None:
        """The value as a number; None for a word."""
        try:
            return float(self.value)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{self.value}"


@dataclass(frozen=True)
class FilterConfig:
    """Which pairs are used. All that is left out is counted by reason."""

    min_side: int = 0
    """Fewest pixels of a picture's shorter side; 0: any."""
    max_side: int = 0
    """Most pixels of a picture's longer side; 0: any."""
    max_aspect: float = 0.0
    """Longer side over shorter, at most; 0: any."""
    min_caption_characters: int = 0
    """Fewest characters of a pair's longest caption; 0: any."""
    max_caption_characters: int = 0
    """Most characters of a pair's longest caption; 0: any."""
    where: tuple[str, ...] = ()
    """Conditions on metadata, as similarity>=0.28 or LANGUAGE=en; a pair that lacks the field is left out."""
    unique: tuple[str, ...] = ()
    """Fields of which each value counts once, at its first pair: key, or a field such as url or sha256."""

    def __post_init__(self) -> None:
        for name in ("min_side", "max_side", "max_aspect", "min_caption_characters", "max_caption_characters"):
            check_at_least(f"filter.{name}", getattr(self, name), 0)
        if 0 < self.max_aspect < 1:
            raise ValueError(f"filter.max_aspect is longer over shorter side, so at least 1, got {self.max_aspect}.")
        _ = self.comparisons

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The conditions of `where`, taken apart."""
        return tuple(_parse(text) for text in self.where)


def _parse(text: str) -> Comparison:
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ValueError(
            f"filter.where takes conditions such as similarity>=0.28 or LANGUAGE=en, with one of "
            f"{' '.join(_OPERATORS)}; got {text!r}."
        )
    comparison = Comparison(*found.groups())
    if comparison.number is None and comparison.operator not in ("=", "!="):
        raise ValueError(f"filter.where: {text!r} orders by {comparison.value!r}, which is not a number.")
    return comparison
