"""What a verb prints on standard output: text, or strict JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from grit_jax.errors import GritError

STDOUT = "standard output"


def print_text(text: str = "", end: str = "\n") -> None:
    """Prints and flushes, so that a full disk or a closed pipe is an error of this line.

    Raises:
      OSError: with `STDOUT` as its file name.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        error.filename = STDOUT
        raise


def print_json(value: Any) -> None:
    """Prints `value` as one line of JSON as RFC 8259 has it, without NaN and infinities.

    Raises:
      GritError: a number is not finite; the message names its key.
    """
    for key, number in _non_finite(value):
        raise GritError(f"the result {key} is {number}, not a finite number; no JSON was written")
    print_text(json.dumps(value, allow_nan=False))


def print_result(values: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Prints the result of a verb: `values` with `--json`, otherwise `text`."""
    if as_json:
        print_json(values)
    else:
        print_text(text)


def discard_stdout() -> None:
    """Sends the rest of standard output nowhere, or the interpreter fails once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _non_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested lists and dicts that JSON cannot hold, each with its dotted key."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key or "value", value
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, inner in items:
        yield from _non_finite(inner, f"{key}.{name}" if key else str(name))
