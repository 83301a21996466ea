"""Host-side checks that word every ValueError alike: what came, what is needed."""

import typing
from typing import Any


def check_at_least(name: str, value: int | float, low: int | float) -> None:
    """Raise ValueError unless `value >= low`."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")


def check_between(
    name: str,
    value: int | float,
    low: int | float,
    high: int | float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise ValueError unless `value` lies in the interval; an open end excludes its bound."""
    inside = (value > low if low_open else value >= low) and (value < high if high_open else value <= high)
    if not inside:
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of the Literal type `choices`."""
    options = typing.get_args(choices)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}.")
