"""What a verb prints on standard output: text, or strict JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.files import json_text

STDOUT = "standard output"


def print_text(text: str = "", end: str = "\n") -> None:
    """Prints and flushes, so that a full disk or a closed pipe is an error of this line.

    Characters that the encoding of standard output lacks become escapes such as `\\u2713`.

    Raises:
      OSError: with `STDOUT` as its file name.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
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


def print_result(values: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Prints the result of a verb: `values` with `--json`, otherwise `text`."""
    if as_json:
        print_json(values)
    else:
        print_text(text)


def discard_stdout() -> None:
    """Sends the rest of standard output nowhere, or the interpreter fails once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
