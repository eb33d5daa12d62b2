"""Where examples come from: JSONL files, globs of them, and prepared tfds datasets, all read the same way.

A prepared dataset is a TensorFlow Datasets folder of ArrayRecord files (random access, one file for each shard), written
and read without TensorFlow. Each record holds a line of the original data and the place it came from.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grit_jax.data.formats import Check, JsonlFile, Kind, LineSource, OnError
from grit_jax.types import GritError

_TFDS = "tfds:"
_NAME = "grit_dataset"


def open_source(
    name: str | Path, kind: Kind | None = None, on_error: OnError = "stop", check: Check | None = None
) -> LineSource:
    """The examples behind a name: a JSONL file, a glob (its files in alphabetical order are one source),
    a folder made by `grit data prepare`, or `tfds:NAME` for one that tfds knows.

    Raises:
      GritError: nothing there, or a line in it that is not an example (see `read_examples`).
    """
    return LineSource(str(name), open_lines(name), kind, on_error, check)


def open_lines(name: str | Path) -> Any:
    """Random access to the lines behind a name, unparsed: `len`, `[i]`, iteration and `where(i)`."""
    text = str(name)
    if text.startswith(_TFDS):
        return PreparedLines(text.removeprefix(_TFDS))
    path = Path(text)
    if path.is_dir():
        if not any(path.glob("**/dataset_info.json")):
            raise GritError(
                f"{text}: a folder without a prepared dataset; name its files ('{text}/*.jsonl') or prepare it "
                f"with: grit data prepare '{text}/*.jsonl' --output DIR"
            )
        return PreparedLines(text)
    if glob.has_magic(text) and not path.exists():
        paths = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not paths:
            raise GritError(f"{text}: no file matches")
        return Lines([JsonlFile(p) for p in paths])
    return JsonlFile(path)


class Lines:
    """Several files as one."""

    def __init__(self, files: Sequence[JsonlFile]):
        self.files = list(files)
        self._ends: list[int] = []
        for file in self.files:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(file))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[bytes]:
        for file in self.files:
            yield from file

    def __getitem__(self, index: int) -> bytes:
        file, i = self._locate(index)
        return file[i]

    def where(self, index: int) -> str:
        file, i = self._locate(index)
        return file.where(i)

    def _locate(self, index: int) -> tuple[JsonlFile, int]:
        import bisect

        number = bisect.bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)
