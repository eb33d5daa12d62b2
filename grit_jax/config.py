"""Reading configurations: YAML plus command-line overrides into frozen dataclasses, strictly.

An unknown key is an error that names the nearest known one; a wrong type names the key and what was
expected. `jsonargparse` checks and converts the values; this module finds the keys and words the
errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from grit_jax.errors import GritError

C = TypeVar("C")


def load_config(
    cls: type[C],
    path: str | Path | None,
    overrides: dict[str, Any] | None = None,
    *,
    paths: tuple[str, ...] = (),
) -> C:
    """Reads `cls` (a dataclass of dataclasses) from a YAML file and dotted overrides.

    Args:
      path: a YAML file, or None for the defaults alone.
      overrides: dotted keys to values, as typed (`{"train.steps": "100"}`); strings are parsed as
        YAML.
      paths: dotted keys that hold file names. In the YAML those are relative to the YAML's folder,
        in the overrides to the working directory.

    Raises:
      GritError: no such file, not YAML, an unknown key, or a value of the wrong type; the message
        names the file and the key.
    """
    where = str(path) if path else "command line"
    tree = read_yaml(path) if path else {}
    _check_keys(cls, tree, where, ())
    if path:
        for key in paths:
            _anchor(tree, key.split("."), Path(path).absolute().parent)
    overrides = overrides or {}
    for key, value in overrides.items():
        parts = key.split(".")
        node: dict[str, Any] = {}
        leaf = node
        for part in parts[:-1]:
            leaf[part] = leaf = {}
        try:
            leaf[parts[-1]] = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "not YAML"
            raise GritError(f"command line: --{key} {value!r} cannot be read: {reason}") from None
        _check_keys(cls, node, "command line", ())
        _merge(tree, node)
    try:
        return build(cls, tree, where)
    except GritError as error:
        reason = str(error).removeprefix(f"{where}: ")
        typed = any(re.match(rf"{re.escape(key)}\b", reason) for key in overrides)
        raise GritError(f"{'command line' if typed else where}: {reason}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dictionary; GritError names the file when it is absent, unreadable or no
    mapping."""
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
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise GritError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(tree, dict):
        raise GritError(f"{path}: expected a mapping of keys such as 'train:', found {_kind(tree)}")
    return tree


def build(cls: type[C], tree: dict[str, Any], where: str) -> C:
    """A dataclass from nested dictionaries, values checked and converted by their annotations."""
    from jsonargparse import ArgumentError, ArgumentParser  # slow to import; not needed for --help

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--root", type=cls)
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # its name before 4.49
    try:
        return instantiate(parser.parse_object({"root": tree})).root
    except (ArgumentError, ValueError) as error:  # the latter from a dataclass's own __post_init__
        raise GritError(f"{where}: {_first_cause(str(error))}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(config))


def dump_yaml(config: Any, header: str = "") -> str:
    """YAML text of a config dataclass; `header` becomes its first comment."""
    body = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)
    return (f"# {header}\n" if header else "") + body


def _anchor(tree: Any, keys: list[str], folder: Path) -> None:
    """Makes the relative file names under a key absolute; a name that is no file (a hub id)
    stays."""

    def absolute(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        scheme, _, rest = name.rpartition(":")
        if scheme not in ("", "tfds") or not rest or rest.startswith("~"):
            return name
        joined = folder / rest
        if keys[-1] == "path" and not joined.exists():
            return name
        return f"{scheme}:{joined}" if scheme else str(joined)

    if not isinstance(tree, dict) or keys[0] not in tree:
        return
    if len(keys) > 1:
        _anchor(tree[keys[0]], keys[1:], folder)
        return
    value = tree[keys[0]]
    if isinstance(value, list):
        tree[keys[0]] = [absolute(v) for v in value]
    elif isinstance(value, dict):  # file name -> number
        tree[keys[0]] = {absolute(k): v for k, v in value.items()}
    else:
        tree[keys[0]] = absolute(value)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _check_keys(cls: type, tree: dict[str, Any], where: str, prefix: tuple[str, ...]) -> None:
    """Raises GritError for the first key that `cls` does not have, with the nearest one that it
    has."""
    hints = typing.get_type_hints(cls)
    for key, value in tree.items():
        dotted = ".".join((*prefix, str(key)))
        if key not in hints:
            known = sorted(hints)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            inside = f" in '{'.'.join(prefix)}'" if prefix else ""
            hint = (
                f"did you mean '{'.'.join((*prefix, near[0]))}'?"
                if near
                else f"known{inside}: {', '.join(known)}"
            )
            raise GritError(f"{where}: unknown key '{dotted}'; {hint}")
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise GritError(
                f"{where}: key '{dotted}' has no value; give it one or leave the key out"
            )
        inner = _dataclass_of(hints[key])
        if inner is not None and value is not None:
            if not isinstance(value, dict):
                raise GritError(f"{where}: key '{dotted}' expects a mapping, found {_kind(value)}")
            _check_keys(inner, value, where, (*prefix, str(key)))


def _dataclass_of(hint: Any) -> type | None:
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
}


def _first_cause(message: str) -> str:
    """jsonargparse reports a tree of causes; a person needs the key and the reason on one line."""
    # The other branch of an optional value says nothing.
    head = re.sub(r"\n\s*- Expected a <class 'NoneType'>.*", "", message, flags=re.DOTALL)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', head)).removeprefix("root").removeprefix(".")
    reason = [line.strip(" -") for line in head.splitlines() if line.strip(" -")][-1]
    if missing := re.fullmatch(r"the following arguments are required: root\.(.*)", reason):
        return f"key '{missing[1]}' is missing"
    if expected := re.fullmatch(r"Expected an? (.*?)(?:\. Got value: (.*))?", reason):
        given = (
            expected[2] or (re.search(r"Given value: (.*)", message) or ["", "something else"])[1]
        )
        kind = re.sub(r"<class '(\w+)'>", lambda found: _KINDS.get(found[1], found[1]), expected[1])
        kind = re.sub(
            r"(?:typing\.)?Literal\[(.*)\]",
            lambda found: "one of " + found[1].replace("'", ""),
            kind,
        )
        reason = f"expected {kind}, found '{given[:60]}'"
    return f"{key}: {reason}" if key else reason
