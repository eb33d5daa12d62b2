"""The rows of data files in any container, one after the other and in bounded memory: JSONL, a JSON
array, parquet, plain or compressed with gzip or zstd."""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grit_jax.data.formats import LineError, parse_json
from grit_jax.data.spool import unpacked
from grit_jax.errors import GritError
from grit_jax.runtime.files import is_stream

PARQUET = b"PAR1"
PARQUET_ROWS = 1000  # in memory at a time
_NOT_EMPTY = "expected one JSON object a line"


@dataclasses.dataclass(frozen=True)
class RawRow:
    """A row of a file.

    Attributes:
      place: `file:line`, or `file: row N` where a container has no lines; counted from 1.
      line: as it is written; None: the container has no lines, and `value` is the row.
    """

    place: str
    line: bytes | None
    value: Any = None

    def json(self) -> Any:
        """The row as a JSON value.

        Raises:
          LineError: the line is not JSON.
        """
        return self.value if self.line is None else parse_json(self.line, self.place)


def iter_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file; blank lines are left out.

    Raises:
      GritError: no such file, a folder, no row in it, damaged data, or binary data of another kind.
    """
    try:
        if not is_stream(path) and path.is_file() and _is_parquet(path):
            rows = _parquet_rows(path)
        else:
            rows = _json_rows(path)
        first = next(rows, None)
        if first is None:
            raise GritError(f"{path}: empty; {_NOT_EMPTY}")
        yield first
        yield from rows
    except FileNotFoundError:
        raise GritError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise GritError(f"{path}: a folder, not a data file") from None
    except OSError as error:
        raise GritError(f"{path}: cannot be read ({error.strerror or error})") from None


def _json_rows(path: Path) -> Iterator[RawRow]:
    chunks = unpacked(path)
    head = b""
    # A decompressor may give empty chunks before the first byte.
    while len(head) < 4096 and (chunk := next(chunks, None)) is not None:
        head += chunk
    if b"\0" in head[:4096]:
        raise GritError(f"{path}: binary data, not a text file with lines")
    head = head.removeprefix(codecs.BOM_UTF8)
    chunks = itertools.chain([head], chunks)
    if head.lstrip()[:1] == b"[":
        return _array_rows(chunks, path)
    return _line_rows(chunks, path)


def _line_rows(chunks: Iterator[bytes], path: Path) -> Iterator[RawRow]:
    number, rest = 0, b""
    for chunk in itertools.chain(chunks, [None]):
        if chunk is None:
            lines, rest = ([rest] if rest else []), b""
        else:
            data = rest + chunk
            # A line ends with a line feed, a carriage return, or both.
            lines = data.splitlines(keepends=True) if b"\r" in data else data.split(b"\n")
            if b"\r" in data and data.endswith(b"\n"):
                rest = b""
            else:
                rest = lines.pop() if lines else b""
        for line in lines:
            number += 1
            if line.strip():
                yield RawRow(f"{path}:{number}", line.rstrip(b"\r\n"))


def _array_rows(chunks: Iterator[bytes], path: Path) -> Iterator[RawRow]:
    """The values of a JSON array, each decoded when the buffer holds it whole."""
    decoder, decode = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
    buffer, number, opened, need = "", 0, False, 0
    for chunk in itertools.chain(chunks, [None]):
        try:
            buffer += decoder.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError as error:
            raise LineError(
                f"{path}: row {number + 1}", f"not UTF-8 text ({error.reason})"
            ) from None
        if not opened:
            buffer, opened = buffer.lstrip()[1:], True
        position = 0
        # A value that was cut is not tried again before the buffer has doubled.
        while len(buffer) >= need or chunk is None:
            while position < len(buffer) and buffer[position] in " \t\r\n,":
                position += 1
            if position == len(buffer):
                break
            if buffer[position] == "]":
                return
            try:
                value, position = decode(buffer, position)
            except ValueError as error:
                if chunk is None:
                    reason = getattr(error, "msg", str(error))
                    raise LineError(
                        f"{path}: row {number + 1}", f"not valid JSON: {reason}"
                    ) from None
                need = 2 * (len(buffer) - position)
                break
            need, number = 0, number + 1
            yield RawRow(f"{path}: row {number}", None, value)
        buffer = buffer[position:]
    raise LineError(f"{path}: row {number + 1}", "not valid JSON: the array does not end")


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == PARQUET


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    # A column that a row has no value in is a key that it does not have.
                    row = {key: item for key, item in value.items() if item is not None}
                    yield RawRow(f"{path}: row {number}", None, row)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise GritError(f"{path}: cannot be read as parquet ({reason:.200})") from None
