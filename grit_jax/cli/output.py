"""What a verb prints on standard output: text, or strict JSON."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.files import is_stdout, json_text

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
    """Prints `value` as one line of JSON, in ASCII, without NaN and infinities.

    Raises:
      GritError: a number is not finite; the message names its key.
    """
    try:
        text = json_text(value, ascii=True)
    except GritError as error:
        raise GritError(f"no JSON was written: {error}") from None
    print_text(text)


def print_result(
    values: Mapping[str, Any], as_json: bool, text: str, output: Path | None = None
) -> None:
    """Prints the result of a verb: `values` with `--json`, otherwise `text`.

    Args:
      output: the file that the verb wrote; see `print_summary`.
    """
    if as_json:
        print_json(values)
    else:
        print_summary(text, output)


def print_summary(text: str, output: Path | None) -> None:
    """Prints one line about the file that was written: on standard error where the file itself is
    standard output (`--output /dev/stdout`)."""
    if output is not None and is_stdout(output):
        print(text, file=sys.stderr)
    else:
        print_text(text)


def escape_unprintable() -> None:
    """Makes standard output write what its encoding lacks as `\\u20ac`, as standard error does,
    instead of failing after the work is done."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Sends the rest of standard output nowhere, or the interpreter fails once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
