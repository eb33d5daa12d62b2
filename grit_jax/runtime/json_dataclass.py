"""JSON objects to dataclasses, strictly: for files that this package wrote itself."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from grit_jax.errors import GritError

T = TypeVar("T")


def from_json(cls: type[T], value: Any, place: str) -> T:
    """Builds `cls` from what `dataclasses.asdict` and JSON made of it.

    Fields may be dataclasses, str, int, float, bool, `Any`, literals, optional values, and lists,
    tuples of one type and dicts of these.

    Args:
      place: where the value was read, for errors: a file name.

    Raises:
      GritError: a key is missing or unknown, or a value has another type; the message names it.
    """
    return _convert(cls, value, f"{place}: ")


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, place)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, place)
    if origin is typing.Literal:
        if value not in arguments:
            raise _error(place, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise _error(place, "a list", value)
        return origin(_convert(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _error(place, "an object", value)
        return {key: _convert(arguments[1], item, _key(place, key)) for key, item in value.items()}
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise _error(place, hint.__name__, value)
    return float(value) if hint is float else value


def _dataclass(cls: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _error(place, "an object", value)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(value.keys() - fields.keys()):
        raise GritError(f"{_key(place, unknown[0])}: unknown key")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise GritError(f"{_key(place, name)}: this key is missing")
    return cls(
        **{name: _convert(hints[name], item, _key(place, name)) for name, item in value.items()}
    )


def _key(place: str, key: str) -> str:
    return f"{place}{key}" if place.endswith(": ") else f"{place}.{key}"


def _error(place: str, expected: str, value: Any) -> GritError:
    return GritError(f"{place.removesuffix(': ')}: expected {expected}, got {value!r:.80}")
