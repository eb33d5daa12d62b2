"""Types of flags, and a parser that is strict and reports an error in one line."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from grit_jax.errors import GritError
from grit_jax.runtime.files import expand_home

# How keys and values are stored: rag/codecs/codecs.py's KINDS, whose module imports JAX.
KV_KINDS = ("native", "int8", "int4", "pca2")


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and reports an error in one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def refuse(self, argument: str) -> NoReturn:
        """Ends with the error for an argument that this parser does not know."""
        if not argument.startswith("-"):
            self.error(f"unexpected argument '{argument}'")
        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag, self.flags(), n=1, cutoff=0.6)
        self.error(f"unknown flag {flag}" + (f", did you mean {near[0]}?" if near else ""))

    def flags(self) -> list[str]:
        """All flags, as they are typed."""
        return re.findall(r"--[a-z.-]+", self.format_usage())


def kinds(
    parser: argparse.ArgumentParser, *names: str
) -> Callable[[str, str], argparse.ArgumentParser]:
    """Gives a verb subcommands; call the result with a name and its help to declare one.

    The parsed arguments carry the subcommand's name as `kind` and its parser as `parser`. The usage
    lists `names`, then others as they are declared.
    """
    listed = list(names)
    subparsers = parser.add_subparsers(dest="kind", required=True, metavar="|".join(listed))

    def add(name: str, help: str) -> argparse.ArgumentParser:
        if name not in listed:
            listed.append(name)
            subparsers.metavar = "|".join(listed)
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.set_defaults(parser=sub)
        return sub

    return add


def path(text: str) -> Path:
    """Reads a file name; `~` is the home directory, also in `--output=~/x`, which no shell
    expands."""
    return Path(place(text))


def place(text: str) -> str:
    """Reads a file name or an address; `~` as for `path`."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return expand_home(text)


def name(text: str) -> str:
    """Reads what may be a file name, a hub id or an address; `~` as for `path`."""
    return expand_home(text)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got '{text}'") from None


def natural(text: str, minimum: int = 0) -> int:
    value = whole_number(text)
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
    return value


def add_task_folders(parser: argparse.ArgumentParser) -> None:
    """The folder that evaluation tasks are made from, and the one that they are written to."""
    parser.add_argument(
        "--input",
        required=True,
        type=path,
        metavar="DIR",
        help="the folder that grit data pydocs wrote, or data/ of a quickstart",
    )
    parser.add_argument("--output", required=True, type=path, metavar="DIR")


def positive(text: str) -> int:
    return natural(text, 1)


def several(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type that reads `1,3,5` as a list of what `parse` makes of each part, without repeats."""

    def read(text: str) -> list[Any]:
        parts = [part.strip() for part in text.split(",")]
        values = list(dict.fromkeys(map(parse, parts)))
        if not all(parts):
            raise argparse.ArgumentTypeError(f"must be words with commas between, got '{text}'")
        return values

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    """A type that accepts one of these words."""

    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got '{text}'")
        return text

    return check


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got '{text}'") from None


def finite(text: str) -> float:
    value = number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got '{text}'")
    return value


def number_or_none(text: str) -> float | None:
    """Reads a finite number, or `none`."""
    return None if text == "none" else finite(text)


def span(text: str) -> tuple[int, int]:
    """Reads `10:15` as (10, 15)."""
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(
            f"expected START:STOP, two step numbers such as 10:15, got '{text}'"
        )
    return int(start), int(stop)


def overrides(arguments: Sequence[str], flags: Sequence[str] = ()) -> dict[str, str]:
    """Reads overridden configuration keys: `--a.b 1 --c.d=2` is {"a.b": "1", "c.d": "2"}.

    Args:
      flags: the verb's own flags, to suggest one for a key that is spelled almost like it.

    Raises:
      GritError: an argument that is not a key, or a key without a value.
    """
    values: dict[str, str] = {}
    queue = list(arguments)
    while queue:
        flag = queue.pop(0)
        if not flag.startswith("--"):
            raise GritError(f"unexpected '{flag}'; overrides look like --train.steps 100")
        key, equals, value = flag[2:].partition("=")
        if near := difflib.get_close_matches(f"--{key}", flags, n=1, cutoff=0.8):
            raise GritError(f"unknown flag --{key}; did you mean {near[0]}?")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise GritError(f"--{key} needs a value")
            value = queue.pop(0)
        values[key] = value
    return values
