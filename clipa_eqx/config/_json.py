"""Configs as JSON, and single fields of them by dotted path."""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ._run import RunConfig


_C = TypeVar("_C")


def config_to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; `config_from_json` reads it back."""
    return dataclasses.asdict(config)


def config_from_json(kind: type[_C], values: dict[str, Any], *, where: str = "") -> _C:
    """Build a config dataclass from JSON values; fields left out take their defaults.

    Args:
        kind: the dataclass to build.
        values: a JSON object.
        where: dotted path of the object, for messages.

    Raises:
        ValueError: an unknown field, or a value of another type than the field's.
    """
    place = where or kind.__name__
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{place} has no field {', '.join(unknown)}; it has: {', '.join(hints)}.")
    prefix = f"{where}." if where else ""
    arguments = {name: _value_from_json(hints[name], value, prefix + name) for name, value in values.items()}
    return kind(**arguments)


def override(config: RunConfig, assignments: Sequence[str]) -> RunConfig:
    """Change single fields of a run by dotted path.

    Args:
        config: the run to start from.
        assignments: `path=value` each, as `stages.0.batch_size=64`, `stages.tune.optim.learning_rate=1e-4` (a stage by
            its place or its name) or `model.vision.pool=first`; values are JSON, or plain words for strings.

    Raises:
        ValueError: no such field, or a value of the wrong type or out of range.
    """
    values = config_to_json(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"An override is written path=value, got {assignment!r}.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, name = path.split(".")
        place: Any = values
        for parent in parents:
            place = _child(place, parent, path)
        if not isinstance(place, dict) or name not in place:
            raise ValueError(f"{path} is not a field of a run; {_fields_there(place)}.")
        place[name] = value
    return config_from_json(RunConfig, values)


def _child(place: Any, name: str, path: str) -> Any:
    if isinstance(place, list | tuple):
        for index, item in enumerate(place):
            if name in (str(index), item.get("name")):
                return item
    elif isinstance(place, dict) and name in place:
        return place[name]
    raise ValueError(f"{path}: there is no {name!r}; {_fields_there(place)}.")


def _fields_there(place: Any) -> str:
    if isinstance(place, dict):
        return f"there are {', '.join(place)}"
    if isinstance(place, list | tuple):
        names = [item["name"] for item in place if "name" in item]
        return f"there are {', '.join(names)}, or their places from 0" if names else f"there are {len(place)} entries"
    return "it is a single value"


def load_run_config(path: Path | str) -> RunConfig:
    """Read a `config.json`, written by a run or by hand.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not a run config.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    return config_from_json(RunConfig, values)


def _value_from_json(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return config_from_json(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple:
        item, *rest = typing.get_args(hint)
        length = None if rest == [Ellipsis] else 1 + len(rest)
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise ValueError(f"{where} must be a list{f' of {length}' if length else ''}, got {value!r}.")
        return tuple(_value_from_json(item, entry, f"{where}.{i}") for i, entry in enumerate(value))
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(hint):
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(hint) is Literal:
        return value  # the dataclass checks its own choices
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}.")
    return value
