"""Files of examples: random access to their lines, and all lines checked before a run begins."""

from __future__ import annotations

import array
import collections
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np

from grit_jax.data.formats import KIND_OF_TYPE, Example, Kind, LineError, parse_line
from grit_jax.data.spool import spooled
from grit_jax.errors import GritError
from grit_jax.runtime.files import home_path
from grit_jax.runtime.progress import progress

OnError: TypeAlias = Literal["stop", "skip"]

# From this many lines on, checking a file takes seconds and shows its progress.
_MANY_LINES = 200_000

# A further check of a valid example and its `file:line`. Returns a reason to leave the example out,
# or None to keep it; raises LineError for a mistake.
Check: TypeAlias = Callable[[Example, str], "str | None"]


class Source(Protocol):
    """Random access to the examples of one dataset; `where(i)` is where example `i` comes from, for
    messages."""

    name: str
    kind: Kind
    num_lines: int
    digest: str  # of all lines
    skipped: collections.Counter[str]  # bad lines by reason (on_error="skip")
    filtered: collections.Counter[str]  # good lines that the run cannot use, by reason

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
    def where(self, index: int) -> str: ...


class JsonlFile:
    """The lines of a text file by number; only their offsets are held in memory.

    A line ends with a line feed, a carriage return or both. Files compressed with gzip or zstd are
    unpacked, and pipes are read, into a temporary file first.

    Args:
      blank_lines: False leaves blank lines out, as in JSONL; with True they count.
      may_be_empty: a file without a line is none to complain about.

    Raises:
      GritError: no such file, a folder, binary data, damaged compression, or no line in it.
    """

    def __init__(self, path: str | Path, *, blank_lines: bool = False, may_be_empty: bool = False):
        self.path = home_path(path)
        try:
            self._spool = spooled(self.path)
            with self._open() as file:
                self.offsets, self.numbers = _scan(file, self.path, blank_lines)
        except FileNotFoundError:
            raise GritError(f"{path}: no such file") from None
        except IsADirectoryError:
            raise GritError(f"{path}: a folder, not a JSONL file") from None
        except OSError as error:
            raise GritError(f"{path}: cannot be read ({error.strerror or error})") from None
        if not len(self.numbers) and not may_be_empty:
            expected = "a line" if blank_lines else "one JSON object a line"
            raise GritError(f"{path}: empty; expected {expected}")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> bytes:
        start, end = self.offsets[index]
        with self._open() as file:  # each access on its own: safe in threads
            return os.pread(file.fileno(), end - start, start)

    def __iter__(self) -> Iterator[bytes]:
        with self._open() as file:
            for start, end in self.offsets:
                yield os.pread(file.fileno(), end - start, start)

    def where(self, index: int) -> str:
        """`file:line` of line `index`, counted from 1 and with blank ones, as an editor does."""
        return f"{self.path}:{self.numbers[index]}"

    def _open(self) -> BinaryIO:
        if self._spool is None:
            return open(self.path, "rb")
        return open(os.dup(self._spool.fileno()), "rb")


def _scan(file: BinaryIO, path: Path, blank_lines: bool) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each line in bytes `[lines, 2]`, and its number from 1 `[lines]`."""
    file.seek(0)
    head = file.read(4096)
    if b"\0" in head:
        raise GritError(f"{path}: binary data, not a text file with lines")
    position = 3 if head.startswith(b"\xef\xbb\xbf") else 0  # the byte-order mark
    file.seek(position)
    # Arrays: a list of integers would take five times as much.
    offsets, numbers, number = array.array("q"), array.array("q"), 0
    for chunk in file:  # up to the next line feed
        for line in chunk.splitlines(keepends=True) if b"\r" in chunk else (chunk,):
            number += 1
            if blank_lines or line.strip():
                offsets.extend((position, position + len(line)))
                numbers.append(number)
            position += len(line)
    return np.asarray(offsets, np.int64).reshape(-1, 2), np.asarray(numbers, np.int64)


class LineSource:
    """A `Source` over the lines of a JsonlFile or a prepared dataset.

    All lines are checked when it is opened, so that a bad line stops a run before it starts.

    Attributes:
      num_lines: all lines, those that are left out included.
      digest: a hash of all lines in their order, line ends left out: sources of the same digest
        hold the same data, wherever they are and however they are stored.
    """

    def __init__(
        self,
        name: str,
        lines: Any,
        kind: Kind | None,
        on_error: OnError,
        check: Check | None = None,
    ):
        self.name = name
        self._lines = lines
        self.skipped: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()
        first_problem: str | None = None
        good: list[int] = []
        line_kind = kind
        content = hashlib.blake2b(digest_size=16)
        shown = progress(lines, f"checking {name}", "lines", quiet=len(lines) < _MANY_LINES)
        for index, line in enumerate(shown):
            content.update(line.rstrip(b"\r\n") + b"\n")
            place = lines.where(index)
            try:
                example = parse_line(line, place)
                example_kind = KIND_OF_TYPE[type(example)]
                check_kind(example_kind, line_kind, place)
                line_kind = example_kind
                reason = check(example, place) if check else None
            except LineError as error:
                if on_error == "stop":
                    raise
                self.skipped[error.reason] += 1
                first_problem = first_problem or str(error)
                continue
            if reason:
                self.filtered[reason] += 1
                first_problem = first_problem or f"{place}: {reason}"
                continue
            good.append(index)
        if not good:
            raise GritError(f"{name}: no usable line; the first problem: {first_problem}")
        assert line_kind is not None
        self.kind: Kind = line_kind
        self.num_lines, self.digest = len(lines), content.hexdigest()
        self._good = np.asarray(good, np.int64)

    def __len__(self) -> int:
        return len(self._good)

    def __getitem__(self, index: int) -> Example:
        number = int(self._good[index])
        return parse_line(self._lines[number], self._lines.where(number))

    def line(self, index: int) -> bytes:
        """Example `index` as it is written in the file."""
        return self._lines[int(self._good[index])]

    def where(self, index: int) -> str:
        """`file:line` of example `index`."""
        return self._lines.where(int(self._good[index]))


def read_examples(
    path: str | Path,
    kind: Kind | None = None,
    on_error: OnError = "stop",
    check: Check | None = None,
) -> LineSource:
    """The examples of a JSONL file, each line checked.

    Args:
      kind: what all lines must be; None: what the first line is.
      on_error: "stop" raises at the first bad line; "skip" leaves it out and counts its reason in
        `.skipped`.
      check: a further check; the examples that it leaves out are counted in `.filtered`.

    Raises:
      GritError: an unreadable file, a bad line (`file:line: what is wrong`), or no good line at
        all.
    """
    return LineSource(str(path), JsonlFile(path), kind, on_error, check)


def check_kind(kind: Kind, expected: Kind | None, place: str) -> None:
    """Raises LineError for an example of another kind than its file's; None: any kind is right."""
    if expected is not None and kind != expected:
        raise LineError(place, f"{_a(kind)} example in {_a(expected)} file")


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind == "embedding" else f"a {kind}"
