"""Rows of JSONL and parquet files by number: only one row, or one group of rows, is in memory."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from grit_jax.data.formats import LineError, parse_json
from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError

BATCH = 1024  # rows of a parquet file that are read at once
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Rows(Protocol):
    """Objects by number; `where(i)` is where row `i` comes from, for messages."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def where(self, index: int) -> str: ...


def open_rows(paths: Sequence[Path]) -> Rows:
    """The rows of one or several files, one after another.

    Raises:
      GritError: a file that cannot be read.
    """
    parts = [ParquetRows(p) if p.name.endswith(".parquet") else JsonlRows(p) for p in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


class JsonlRows:
    """The objects of a JSONL file, which may be compressed with gzip or zstd.

    Raises:
      GritError: as `JsonlFile`; a line that is no object, when it is read.
    """

    def __init__(self, path: Path):
        self._lines = JsonlFile(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._parse(index, self._lines[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._parse(index, line) for index, line in enumerate(self._lines))

    def where(self, index: int) -> str:
        return self._lines.where(index)

    def _parse(self, index: int, line: bytes) -> dict[str, Any]:
        row = parse_json(line, self.where(index))
        if not isinstance(row, dict):
            raise LineError(self.where(index), f"expected a JSON object, got {type(row).__name__}")
        return row


class ParquetRows:
    """The rows of a parquet file.

    Raises:
      GritError: no such file, or no parquet file.
    """

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        self._path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except FileNotFoundError:
            raise GritError(f"{path}: no such file") from None
        except (OSError, pyarrow.ArrowException) as error:
            raise GritError(f"{path}: not a parquet file ({error})") from None
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(itertools.accumulate(sizes))
        self._group = functools.lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        return self._group(group).slice(index - start, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(BATCH):
            yield from batch.to_pylist()

    def where(self, index: int) -> str:
        return f"{self._path}, row {index}"

    def _read_group(self, group: int) -> Any:
        return self._file.read_row_group(group)


class JoinedRows:
    """The rows of several files, one after another."""

    def __init__(self, parts: Sequence[Rows]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, offset = self._place(index)
        return part[offset]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(self._parts)

    def where(self, index: int) -> str:
        part, offset = self._place(index)
        return part.where(offset)

    def _place(self, index: int) -> tuple[Rows, int]:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)
