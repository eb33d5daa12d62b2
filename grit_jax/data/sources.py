"""Sources of examples: JSONL files, globs of them, and prepared tfds datasets, with one interface.

A prepared dataset is a TensorFlow Datasets folder of ArrayRecord files (random access, one file per
shard), written and read without TensorFlow. Each record has a line of the original data and its
place (`file:line`).
"""

from __future__ import annotations

import bisect
import glob
import json
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.formats import Kind, document_text, parse_json
from grit_jax.data.lines import Check, JsonlFile, LineSource, OnError
from grit_jax.errors import GritError
from grit_jax.runtime.files import expand_home
from grit_jax.runtime.progress import say

_TFDS = "tfds:"


def open_source(
    name: str | Path,
    kind: Kind | None = None,
    on_error: OnError = "stop",
    check: Check | None = None,
) -> LineSource:
    """Opens the examples that a name stands for.

    Args:
      name: a JSONL file, a glob (its files in alphabetical order form one source), a folder made by
        `grit data prepare`, or `tfds:NAME` for a dataset that tfds knows.

    Raises:
      GritError: there is no such data, or a line is not an example (see `read_examples`).
    """
    return LineSource(str(name), open_lines(name), kind, on_error, check)


def open_sources(
    names: Sequence[str | Path],
    key: str,
    kind: Kind | None = None,
    on_error: OnError = "stop",
    check: Check | None = None,
) -> list[LineSource]:
    """Opens the sources of a list and reads no file twice: a repeated example would become its own
    negative in a contrastive batch.

    A file that several globs match, or a glob and a name, is read once, with a warning. A glob
    whose files are all listed elsewhere is left out.

    Args:
      key: the list's name in messages.

    Raises:
      GritError: the same file or dataset is listed twice by name, or see `open_source`.
    """
    names = [expand_home(str(name)) for name in names]
    opened: list[LineSource] = []
    for name, skip in zip(names, _repeated_files(names, key), strict=True):
        if skip is not None:
            opened.append(LineSource(name, open_lines(name, skip), kind, on_error, check))
            kind = opened[0].kind
    for number, source in enumerate(opened):
        for other in opened[:number]:
            if source.digest == other.digest:
                say(
                    f"{key}: {other.name} and {source.name} hold the same {source.num_lines} lines;"
                    " every example in them is read twice, and may be its own negative"
                )
    return opened


def source_units(names: Sequence[str | Path], key: str) -> list[tuple[str, Path | PreparedLines]]:
    """The files and prepared datasets that names stand for, each with its name, in order; no file
    twice.

    Args:
      key: what the names are in messages.

    Raises:
      GritError: nothing is there, or the same file is listed twice by name.
    """
    names = [expand_home(str(name)) for name in names]
    units: list[tuple[str, Path | PreparedLines]] = []
    for name, skip in zip(names, _repeated_files(names, key), strict=True):
        if skip is None:
            continue
        if name.startswith(_TFDS) or Path(name).is_dir():
            units.append((name, open_lines(name)))
        elif _is_glob(name):
            units += [(name, path) for path in _matches(name) if path not in skip]
        else:
            units.append((name, Path(name)))
    return units


def open_lines(name: str | Path, skip: Set[Path] = frozenset()) -> Any:
    """Random access to the unparsed lines of a source: `len`, `[i]`, iteration and `where(i)`.

    Args:
      name: as for `open_source`.
      skip: files that a glob should leave out.
    """
    text = expand_home(str(name))
    if text.startswith(_TFDS):
        return PreparedLines(text.removeprefix(_TFDS))
    path = Path(text)
    if path.is_dir():
        if not any(path.glob("**/dataset_info.json")):
            raise GritError(
                f"{text}: a folder without a prepared dataset; name its files ('{text}/*.jsonl') "
                f"or prepare it with: grit data prepare '{text}/*.jsonl' --output DIR"
            )
        return PreparedLines(text)
    if _is_glob(text):
        return Lines([JsonlFile(p) for p in _matches(text) if p not in skip])
    return JsonlFile(path)


def _is_glob(name: str) -> bool:
    return not name.startswith(_TFDS) and glob.has_magic(name) and not Path(name).exists()


def _matches(pattern: str) -> list[Path]:
    """The files that a glob matches, in alphabetical order."""
    paths = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not paths:
        raise GritError(f"{pattern}: no file matches")
    return [Path(p) for p in paths]


def _repeated_files(names: Sequence[str | Path], key: str) -> list[set[Path] | None]:
    """For each name, the files of its glob that another entry reads; None: all of them."""
    reader: dict[Any, str] = {}  # identity of a file or dataset -> the entry that reads it
    skipped: dict[int, set[Path] | None] = {}
    # Entries that name one file come first, since only globs can leave files out.
    for number in sorted(range(len(names)), key=lambda i: _is_glob(str(names[i]))):
        name = str(names[number])
        if not _is_glob(name):
            if first := reader.get(_identity(name)):
                twice = (
                    f"{name} is listed twice"
                    if first == name
                    else f"{first} and {name} are the same data ({_target(name)})"
                )
                raise GritError(f"{key}: {twice}; list it once")
            reader[_identity(name)], skipped[number] = name, set()
            continue
        files, repeated = _matches(name), set()
        for file in files:
            identity = _identity(str(file))
            if identity in reader:
                repeated.add(file)
            else:
                reader[identity] = name
        if repeated:
            shown = ", ".join(map(str, sorted(repeated)[:3])) + ", ..." * (len(repeated) > 3)
            say(
                f"{key}: {len(repeated)} of the {len(files)} files that {name} matches are listed"
                f" before ({shown}); each file is read once"
            )
        skipped[number] = repeated if len(repeated) < len(files) else None
    return [skipped[number] for number in range(len(names))]


def _target(name: str) -> Path:
    """The file or prepared dataset that a name stands for, with links resolved."""
    path = Path(name.removeprefix(_TFDS))
    datasets = list(path.glob("**/dataset_info.json")) if path.is_dir() else []
    return (datasets[0].parent if len(datasets) == 1 else path).resolve()


def _identity(name: str) -> Any:
    """A key that is equal for two names of the same file or dataset (links, relative paths)."""
    try:
        status = _target(name).stat()
        return status.st_dev, status.st_ino
    except OSError:
        return name


def iter_documents(name: str | Path) -> Iterator[str]:
    """The texts, as they are encoded, of a source of corpus lines `{"id", "title"?, "text"}`.

    Raises:
      GritError: nothing is there, or a line is not a document (`file:line: what is wrong`).
    """
    lines = open_lines(name)
    for index, line in enumerate(lines):
        place = lines.where(index)
        yield document_text(parse_json(line, place), place)


class Lines:
    """The lines of several files as one sequence."""

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
        """The line's file and number, for messages."""
        file, i = self._locate(index)
        return file.where(i)

    def _locate(self, index: int) -> tuple[JsonlFile, int]:
        number = bisect.bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)


class PreparedLines:
    """The lines of a tfds dataset by number.

    Records written by `grit data prepare` have a line each. Those of other datasets (with `text`,
    or `query`, `pos`, `neg`) are converted to a line.

    Args:
      name: the dataset's folder, a folder above it, or a name that tfds knows.
    """

    def __init__(self, name: str):
        self.name = name
        import tensorflow_datasets as tfds

        try:
            if Path(name).exists():
                builder = tfds.builder_from_directory(str(_dataset_folder(Path(name))))
            else:
                builder = tfds.builder(name)
            split = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
            # pyright: ignore[reportCallIssue]
            self._data: Any = builder.as_data_source(split=split)
        except GritError:
            raise
        except Exception as error:  # tfds errors have no common base class
            reason = str(error).strip().split("\n")[0][:200]
            raise GritError(
                f"{_TFDS}{name}: cannot be opened as a tfds dataset ({reason})"
            ) from None

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> bytes:
        record = self._data[index]
        return record["line"] if "line" in record else json.dumps(_plain(record)).encode()

    def where(self, index: int) -> str:
        """The file and line that the record was made from, or the record's number if unknown."""
        record = self._data[index]
        return record["where"].decode() if "where" in record else f"{self.name}: record {index}"

    def __reduce__(self):
        return PreparedLines, (self.name,)  # open files cannot be sent to worker processes


def _dataset_folder(path: Path) -> Path:
    folders = sorted(p.parent for p in path.glob("**/dataset_info.json"))
    if len(folders) != 1:
        contents = (
            f"{len(folders)} prepared datasets ({', '.join(map(str, folders[:3]))})"
            if folders
            else "no prepared dataset"
        )
        raise GritError(f"{path}: holds {contents}; name the folder of one")
    return folders[0]


def _plain(value: Any) -> Any:
    """Converts a tfds record to JSON values."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
        if isinstance(value, bytes):
            return _plain(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value
