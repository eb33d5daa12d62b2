"""YAML files and dotted overrides to nested dataclasses.

Every value is checked against the annotation of its field. An error names the file (or the command
line), the dotted key, what was expected and what was given; an unknown key is an error that names
the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from grit_jax.errors import GritError
from grit_jax.runtime.files import expand_home, home_path

C = TypeVar("C")
COMMAND_LINE = "command line"


class ConfigError(GritError):
    """A key of a configuration that cannot be used.

    Attributes:
      source: the file, or `command line`.
      key: the dotted key, as a tuple; entries of a list have their number in it.
      problem: what is wrong, without the place.
    """

    def __init__(self, source: str, key: tuple[str, ...], problem: str):
        name = dotted(key)
        super().__init__(f"{source}: {f'{name}: ' if name else ''}{problem}")
        self.source, self.key, self.problem = source, key, problem


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value from the command line: its text, and what YAML makes of it.

    Where a string is expected the text counts: `--output 2024` names a folder, not a number.
    """

    text: str
    value: Any


def load_config(
    cls: type[C],
    path: str | Path | None,
    overrides: dict[str, Any] | None = None,
    *,
    paths: Collection[str] = (),
) -> C:
    """Reads `cls` (a dataclass of dataclasses) from a YAML file and dotted overrides.

    Args:
      path: a YAML file, or None for the defaults alone.
      overrides: dotted keys to values, as typed (`{"train.steps": "100"}`); strings are parsed as
        YAML.
      paths: dotted keys that hold file names. A relative name in the YAML is relative to the YAML's
        folder, on the command line to the working directory. `~` is the home directory.

    Raises:
      GritError: no such file, or not YAML.
      ConfigError (a GritError): an unknown key, a missing one, or a value of the wrong type.

    >>> from grit_jax.data.config import DataConfig
    >>> load_config(DataConfig, None, {"group_size": "8", "layouts": "[doc, query]"}).layouts
    ['doc', 'query']
    >>> load_config(DataConfig, None, {"group_sise": "8"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    grit_jax.config.ConfigError: command line: ...group_size...
    """
    path = home_path(path) if path else None
    source = str(path) if path else COMMAND_LINE
    tree = read_yaml(path) if path else {}
    _check_keys(cls, tree, source)
    if path:
        folder = Path(path).absolute().parent
        _map_paths(tree, paths, lambda name, key: _anchored(name, key, folder))
    overrides = overrides or {}
    for key, value in overrides.items():
        node = _override(key, value)
        _check_keys(cls, node, COMMAND_LINE)
        _map_paths(node, paths, lambda name, _: expand_home(name))
        _merge(tree, node)
    typed = [tuple(key.split(".")) for key in overrides]

    def source_of(key: tuple[str, ...]) -> str:
        return COMMAND_LINE if any(key[: len(name)] == name for name in typed) else source

    return _build(cls, tree, source_of)


def build(cls: type[C], tree: Mapping[str, Any], source: str) -> C:
    """A dataclass from nested dictionaries, values checked and converted by their annotations.

    Raises:
      ConfigError (a GritError): see `load_config`.
    """
    _check_keys(cls, tree, source)
    return _build(cls, tree, lambda _: source)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)  # a subclass, too: YAML knows none
        return value

    return plain(dataclasses.asdict(config))


def dump_yaml(
    config: Any, header: str = "", *, paths: Collection[str] = (), folder: Path | None = None
) -> str:
    """YAML text of a config dataclass.

    Args:
      header: becomes the first comment.
      paths: dotted keys that hold file names, as for `load_config`.
      folder: where the text will be stored. File names in it are written relative to it and all
        others absolute, so that the file works from any working directory and after the folder is
        moved. None: names are written as they are.
    """
    tree = to_dict(config)
    if folder is not None:
        base = Path(os.path.abspath(folder))
        _map_paths(tree, paths, lambda name, key: _relative(name, key, base))
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)
    return (f"# {header}\n" if header else "") + body


def dotted(key: tuple[str, ...]) -> str:
    """A key as it is typed on the command line: `data.embedding[0]`."""
    return ".".join(key).replace(".[", "[")


# ---- reading YAML --------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML takes the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value == "<<":
                continue
            line = name.start_mark.line + 1
            if name.value in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"duplicate key '{name.value}', first used in line {lines[name.value]}",
                    problem_mark=name.start_mark,
                )
            lines[name.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
      GritError: the file is absent, unreadable, not YAML, or no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GritError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GritError(
            f"{path}: cannot be read as text ({error.__class__.__name__}: {error})"
        ) from None
    try:
        tree = yaml.load(text, _StrictLoader)  # a SafeLoader: it makes plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise GritError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(tree, dict):
        raise GritError(
            f"{path}: expected a mapping of keys such as 'train:', got {_describe(tree)}"
        )
    return tree


def _override(key: str, value: Any) -> dict[str, Any]:
    """The tree of one dotted key."""
    if isinstance(value, str):
        try:
            parsed = yaml.load(value, _StrictLoader)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "not YAML"
            raise GritError(f"{COMMAND_LINE}: --{key} {value!r} cannot be read: {reason}") from None
        value = parsed if isinstance(parsed, (dict, str, type(None))) else Typed(value, parsed)
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> None:
    for name, value in extra.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(base[name], value)
        else:
            base[name] = value


# ---- file names ----------------------------------------------------------------------------------


def _anchored(name: str, key: str, folder: Path) -> str:
    """An absolute name for one that is relative to `folder`; a hub id stays."""
    name = expand_home(name)
    scheme, _, rest = name.rpartition(":")
    if scheme not in ("", "tfds") or not rest:
        return name
    joined = folder / rest
    if _may_be_hub_id(key) and not joined.exists():
        return name
    return f"{scheme}:{joined}" if scheme else str(joined)


def _relative(name: str, key: str, folder: Path) -> str:
    """The name of a file in `folder` relative to it, any other one absolute; a hub id stays."""
    scheme, _, rest = name.rpartition(":")
    if scheme not in ("", "tfds") or not rest or (_may_be_hub_id(key) and not Path(rest).exists()):
        return name
    absolute = Path(os.path.abspath(rest))
    path = absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    return f"{scheme}:{path}" if scheme else str(path)


def _may_be_hub_id(key: str) -> bool:
    """Whether `key` names a model or tokenizer, which may be a hub id instead of a folder."""
    return key.rpartition(".")[2] == "path"


def _map_paths(
    tree: dict[str, Any], paths: Collection[str], rename: Callable[[str, str], str]
) -> None:
    """Replaces the file names under the keys `paths` by `rename(name, key)`."""

    def renamed(value: Any, key: str) -> Any:
        if isinstance(value, Typed):
            return Typed(renamed(value.text, key), renamed(value.value, key))
        if isinstance(value, list):
            return [renamed(item, key) for item in value]
        if isinstance(value, dict):  # file names to numbers
            return {renamed(name, key): number for name, number in value.items()}
        return rename(value, key) if isinstance(value, str) else value

    for key in paths:
        *outer, last = key.split(".")
        node: Any = tree
        for name in outer:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            node[last] = renamed(node[last], key)


# ---- checking and converting ---------------------------------------------------------------------


def _check_keys(cls: type, tree: Mapping[str, Any], source: str, outer: tuple = ()) -> None:
    """Raises for the first key that `cls` does not have, and for a key without a value."""
    hints = typing.get_type_hints(cls)
    for name, value in tree.items():
        key = (*outer, str(name))
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.6)
            inside = f" in '{dotted(outer)}'" if outer else ""
            hint = (
                f"did you mean '{dotted((*outer, near[0]))}'?"
                if near
                else f"known{inside}: {', '.join(sorted(hints))}"
            )
            raise ConfigError(source, (), f"unknown key '{dotted(key)}'; {hint}")
        if value is None and type(None) not in typing.get_args(hints[name]):
            problem = f"key '{dotted(key)}' has no value; give it one or leave the key out"
            raise ConfigError(source, (), problem)
        inner = _dataclass_of(hints[name])
        if inner is not None and value is not None:
            if not isinstance(value, dict):
                problem = f"key '{dotted(key)}' expects a mapping, got {_describe(value)}"
                raise ConfigError(source, (), problem)
            _check_keys(inner, value, source, key)


def _build(cls: type[C], tree: Mapping[str, Any], source_of: Callable[[tuple], str]) -> C:
    """The dataclass of a tree whose keys have been checked.

    Args:
      source_of: the file or `command line` that a key comes from, for messages.
    """
    try:
        return _convert(tree, cls, ())
    except _ValueProblem as error:
        raise ConfigError(source_of(error.key), error.key, error.problem) from None
    except _ObjectProblem as error:
        # A check over several fields: its message begins with the key it is about.
        key = tuple(re.split(r"[^\w.]", error.problem, maxsplit=1)[0].split("."))
        raise ConfigError(source_of(key), (), error.problem) from None


class _ValueProblem(Exception):
    def __init__(self, key: tuple[str, ...], problem: str):
        self.key, self.problem = key, problem


class _ObjectProblem(Exception):
    def __init__(self, problem: str):
        self.problem = problem


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_INTEGER = re.compile(r"[+-]?\d[\d_]*")
# YAML 1.1 reads 2e-5 as a string, for want of a point.
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _convert(value: Any, hint: Any, key: tuple[str, ...]) -> Any:
    """`value` as the annotation `hint` asks; `_ValueProblem` where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, key)
    if origin is Literal:
        plain = _string(value)
        if plain in arguments:
            return plain
        raise _ValueProblem(
            key, f"expected one of {', '.join(map(str, arguments))}, got {_describe(value)}"
        )
    text, value = value, value.value if isinstance(value, Typed) else value
    if origin in (list, tuple):
        return _convert_sequence(value, origin, arguments, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise _ValueProblem(key, f"expected a mapping, got {_describe(value)}")
        return {
            _convert(name, arguments[0], (*key, str(name))): _convert(
                inner, arguments[1], (*key, str(name))
            )
            for name, inner in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(value, hint, key)
    return _convert_scalar(text, hint, key)


def _convert_union(value: Any, hints: tuple[Any, ...], key: tuple[str, ...]) -> Any:
    """The first alternative that fits; the error of the first that is not None."""
    if type(None) in hints and (value.value if isinstance(value, Typed) else value) is None:
        return None
    problem: _ValueProblem | None = None
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return _convert(value, hint, key)
        except _ValueProblem as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _convert_sequence(value: Any, origin: type, hints: tuple[Any, ...], key: tuple) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _ValueProblem(key, f"expected a list such as [a, b], got {_describe(value)}")
    if origin is list or hints[1:] == (...,):
        each = hints[:1] * len(value)
    elif len(value) == len(hints):
        each = hints
    else:
        raise _ValueProblem(key, f"expected {len(hints)} entries, got {len(value)}")
    return origin(
        _convert(item, hint, (*key, f"[{i}]"))
        for i, (item, hint) in enumerate(zip(value, each, strict=True))
    )


def _convert_dataclass(value: Any, cls: type, key: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        raise _ValueProblem(key, f"expected a mapping, got {_describe(value)}")
    hints = typing.get_type_hints(cls)
    values = {name: _convert(inner, hints[name], (*key, name)) for name, inner in value.items()}
    for field in dataclasses.fields(cls):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise _ObjectProblem(f"key '{dotted((*key, field.name))}' is missing")
    try:
        return cls(**values)
    except (ValueError, GritError) as error:  # the dataclass's own check
        raise _ObjectProblem(str(error)) from None


def _convert_scalar(value: Any, hint: type, key: tuple[str, ...]) -> Any:
    if hint is str:
        plain = _string(value)
        if isinstance(plain, str):
            return plain
        quote = "; put it in quotes" if isinstance(plain, (bool, int, float)) else ""
        raise _ValueProblem(key, f"expected a string, got {_describe(value)}{quote}")
    plain = value.value if isinstance(value, Typed) else value
    if hint is bool and isinstance(plain, bool):
        return plain
    if hint is int:
        if isinstance(plain, int) and not isinstance(plain, bool):
            return plain
        if isinstance(plain, str) and _INTEGER.fullmatch(plain):
            return int(plain)
    if hint is float:
        if isinstance(plain, (int, float)) and not isinstance(plain, bool):
            return float(plain)
        if isinstance(plain, str) and _NUMBER.fullmatch(plain):
            return float(plain)
    raise _ValueProblem(key, f"expected {_NAMES.get(hint, hint.__name__)}, got {_describe(value)}")


def _string(value: Any) -> Any:
    """A value where a string is expected."""
    return value.text if isinstance(value, Typed) else value


def _dataclass_of(hint: Any) -> type | None:
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _describe(value: Any) -> str:
    """A value as an error message shows it."""
    if isinstance(value, Typed):
        return repr(value.text[:60])
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return repr(value)[:60] if isinstance(value, str) else str(value)[:60]
