"""How a command line is read: strictly, and with one line for the person where it is wrong."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from grit_jax.errors import GritError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line (`--help` has the rest), and takes no abbreviations."""

    def __init__(self, **how: Any):
        super().__init__(allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def refuse(self, argument: str) -> NoReturn:
        """Ends with what is to be said of an argument that nothing here takes."""
        if not argument.startswith("-"):
            self.error(f"unexpected argument '{argument}'")
        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag, self.flags(), n=1, cutoff=0.6)
        self.error(f"unknown flag {flag}" + (f", did you mean {near[0]}?" if near else ""))

    def flags(self) -> list[str]:
        """All flags, as they are typed."""
        return re.findall(r"--[a-z-]+", self.format_usage())


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, is '{text}'") from None


def natural(text: str, least: int = 0) -> int:
    value = whole_number(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, is {value}")
    return value


def positive(text: str) -> int:
    return natural(text, 1)


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """`1,3,5` as a list of what `one` makes of each, none of them twice."""
    return lambda text: list(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def one_of(*known: str) -> Callable[[str], str]:
    """One of these words."""

    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, is '{text}'")
        return text

    return check


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, is '{text}'") from None


def span(text: str) -> tuple[int, int]:
    """`10:15` as (10, 15)."""
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(
            f"wants START:STOP, two step numbers such as 10:15, is '{text}'"
        )
    return int(start), int(stop)


def overrides(arguments: Sequence[str], flags: Sequence[str] = ()) -> dict[str, str]:
    """Keys of a configuration: `--a.b 1 --c.d=2` as {"a.b": "1", "c.d": "2"}.

    Args:
      flags: what else may stand there, to recognise when it is misspelt.

    Raises:
      GritError: something else, or a key without a value.
    """
    found: dict[str, str] = {}
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
        found[key] = value
    return found
