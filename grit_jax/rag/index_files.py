"""The files of an index, and how they change so that a kill at any instant loses nothing that was
committed.

    index.json       the manifest: what made the index, and how much of the other files counts
    documents.jsonl  {"id", "title", "text", "key", "tokens"} a line, a row each
    vectors.npy      float32 [rows, D], a NumPy file
    dead.bin         int64 numbers of the rows that count no more: their document was replaced or
    deleted milvus.db        a copy of the living vectors for Milvus to search, where it does
    (`milvus`) kv/              the documents' records (`store.DocumentStore`), unless they are kept
    elsewhere

The files only grow. A batch is appended and flushed to disk everywhere before the manifest is
replaced, which is what commits it: rows that come and rows that go in one step. What stands behind
the committed end of a file comes from a writer that was killed, and is cut off by the next one.
When many rows are dead, the others are copied to files of the next generation (`documents.1.jsonl`,
...), and the manifest changes over to those.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.rag.search.exact import StoredVectors
from grit_jax.runtime.files import LOCK, is_temporary, lock_folder, write_json

FORMAT_VERSION = 2
MANIFEST = "index.json"
DOCUMENTS, VECTORS, DEAD, KV = "documents.jsonl", "vectors.npy", "dead.bin", "kv"
NPY_HEADER = 128  # bytes; the shape in it is rewritten in place as the file grows
COPY_ROWS = 4096  # at a time, into the next generation
# `documents` and `tokens` are those of the living rows, `rows` and `documents_bytes` those of the
# files.
COUNTS = ("dim", "documents", "tokens", "rows", "dead", "documents_bytes", "generation")


def file_name(name: str, generation: int) -> str:
    """The name of a file in a generation of the index."""
    if not generation:
        return name
    stem, dot, end = name.partition(".")
    return f"{stem}.{generation}{dot}{end}"


class IndexWriter:
    """Appends documents to an index and takes others out. Open one with `writing`; `manifest` is
    what is committed."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        # Open for as long as the writer is: `writing` closes them.
        self._open(manifest)
        self._recover()

    def append(
        self,
        vectors: np.ndarray,
        documents: Sequence[dict[str, Any]],
        dead: Mapping[int, int] | None = None,
    ) -> None:
        """Commits new rows, and the death of others: when this returns, a kill does not undo it.

        Args:
          documents: their records are in the store by then.
          dead: rows (not dead yet) and their tokens.
        """
        m, dead = self.manifest, dead or {}
        lines = b"".join(
            json.dumps(d, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            for d in documents
        )
        self._documents.write(lines)
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        self._dead.write(np.fromiter(dead, "<i8").tobytes())
        self._end_vectors(m["rows"] + len(documents))
        self._flush()
        m.update(
            documents=m["documents"] + len(documents) - len(dead),
            tokens=m["tokens"] + sum(d["tokens"] for d in documents) - sum(dead.values()),
            rows=m["rows"] + len(documents),
            dead=m["dead"] + len(dead),
            documents_bytes=m["documents_bytes"] + len(lines),
            complete=False,
        )
        write_manifest(self.path, m)

    def commit(self, **changes: Any) -> None:
        """Changes other entries of the manifest."""
        if any(self.manifest.get(name) != value for name, value in changes.items()):
            self.manifest.update(changes)
            write_manifest(self.path, self.manifest)

    def next_generation(self) -> None:
        """Copies the living rows, in their order, to new files and changes over to them."""
        m = self.manifest
        rows, vectors = living(self.path, m), map_vectors(self.path, m)
        lines = JsonlFile(self.path / file_name(DOCUMENTS, m["generation"]))
        new = {**m, "generation": m["generation"] + 1, "rows": 0, "dead": 0, "documents_bytes": 0}
        self.close()
        self._remove(new["generation"])  # of one that was killed in the middle
        self._open(new)
        self._end_vectors(0)
        for start in range(0, len(rows), COPY_ROWS):
            part = rows[start : start + COPY_ROWS]
            data = b"".join(lines[row] for row in part)
            self._documents.write(data)
            self._vectors.write(np.ascontiguousarray(vectors[part], "<f4").tobytes())
            new["documents_bytes"] += len(data)
        new["rows"] = len(rows)
        self._end_vectors(len(rows))
        self._flush()
        self.manifest = new
        write_manifest(self.path, new)
        self._remove(new["generation"] - 1)

    def close(self) -> None:
        """Closes the files; nothing is committed by it."""
        for file in (self._documents, self._vectors, self._dead):
            file.close()

    def _remove(self, generation: int) -> None:
        for name in (DOCUMENTS, VECTORS, DEAD):
            (self.path / file_name(name, generation)).unlink(missing_ok=True)

    def _open(self, manifest: dict[str, Any]) -> None:
        documents, vectors, dead = (
            self.path / file_name(name, manifest["generation"])
            for name in (DOCUMENTS, VECTORS, DEAD)
        )
        vectors.touch()
        self._documents, self._dead = open(documents, "ab"), open(dead, "ab")  # noqa: SIM115
        self._vectors = open(vectors, "r+b")  # noqa: SIM115

    def _end_vectors(self, rows: int) -> None:
        """Writes the header of so many rows and goes behind the last of them."""
        self._vectors.seek(0)
        self._vectors.write(npy_header(rows, self.manifest["dim"]))
        self._vectors.seek(NPY_HEADER + rows * self.manifest["dim"] * 4)

    def _flush(self) -> None:
        for file in (self._documents, self._vectors, self._dead):
            file.flush()
            os.fsync(file.fileno())

    def _recover(self) -> None:
        """Cuts off what a killed writer left uncommitted."""
        m = self.manifest
        wanted = NPY_HEADER + m["rows"] * m["dim"] * 4 if m["rows"] else 0
        sizes = (
            (self._documents, m["documents_bytes"]),
            (self._vectors, wanted),
            (self._dead, m["dead"] * 8),
        )
        for file, size in sizes:
            if file.seek(0, os.SEEK_END) < size:
                raise GritError(
                    f"{self.path}: the index is damaged (files are shorter than index.json says);"
                    " remove it"
                )
            file.truncate(size)
            file.seek(size)
        self._end_vectors(m["rows"])
        if m["generation"]:
            self._remove(m["generation"] - 1)


def living(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    """The rows of an index that count, in order.

    Raises:
      GritError: a file is damaged.
    """
    alive = np.ones(manifest["rows"], bool)
    alive[dead_rows(path, manifest)] = False
    rows = np.flatnonzero(alive)
    if len(rows) != manifest["documents"]:
        name, left = (
            file_name(DEAD, manifest["generation"]),
            f"{len(rows)} rows are left, not {manifest['documents']}",
        )
        raise GritError(f"{path / name}: is damaged ({left}); make the index again")
    return rows


def dead_rows(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    """The rows of an index that count no more, in the order in which they died.

    Raises:
      GritError: the file is damaged.
    """
    name = path / file_name(DEAD, manifest["generation"])
    if not manifest["dead"]:
        return np.zeros(0, np.int64)
    try:
        dead = np.fromfile(name, "<i8", manifest["dead"])
    except OSError as error:
        raise GritError(f"{name}: cannot be read ({error}); make the index again") from None
    if len(dead) and not 0 <= dead.min() <= dead.max() < manifest["rows"]:
        raise GritError(
            f"{name}: is damaged (it names rows that are not there); make the index again"
        )
    return dead


def map_vectors(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    """The vectors of all rows, dead ones included, memory-mapped.

    Raises:
      GritError: the file is damaged.
    """
    name = path / file_name(VECTORS, manifest["generation"])
    if not manifest["rows"]:
        return np.zeros((0, manifest["dim"]), np.float32)
    try:
        return np.memmap(name, "<f4", "r", NPY_HEADER, (manifest["rows"], manifest["dim"]))
    except (OSError, ValueError) as error:
        raise GritError(f"{name}: cannot be read ({error}); make the index again") from None


class _Living:
    """Vectors of some rows, read when asked for."""

    def __init__(self, mapped: np.ndarray, rows: np.ndarray):
        self._mapped, self._rows = mapped, rows
        self.shape = (len(rows), mapped.shape[1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._mapped[self._rows[rows]]


def living_vectors(path: Path, manifest: dict[str, Any], rows: np.ndarray) -> StoredVectors:
    """The vectors of the living rows (`living`), memory-mapped.

    Raises:
      GritError: the file is damaged.
    """
    mapped = map_vectors(path, manifest)
    return _Living(mapped, rows) if manifest["dead"] else mapped


def store_path(path: Path, manifest: dict[str, Any], generation: int | None = None) -> str:
    """Where the records of an index are; those of the committed generation unless told."""
    base = (manifest["store"] or str(path / KV)).rstrip("/")
    generation = manifest["generation"] if generation is None else generation
    return f"{base}.{generation}" if generation else base


def indexed_line(data: bytes, where: str) -> dict[str, Any]:
    """A line of `documents.jsonl`.

    Raises:
      GritError: it is damaged.
    """
    try:
        line = json.loads(data)
        if not {"id", "title", "text", "key", "tokens"} <= line.keys():
            raise ValueError("no 'id', 'title', 'text', 'key' and 'tokens'")
        return line
    except (ValueError, AttributeError) as error:
        raise GritError(f"{where}: is damaged ({error}); make the index again") from None


class IndexedDocuments:
    """Documents by row, dead ones left out, read from disk when asked for; only their places are in
    memory."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        name = path / file_name(DOCUMENTS, manifest["generation"])
        self.rows = living(path, manifest)
        self._lines = JsonlFile(name)
        if len(self._lines) < manifest["rows"]:
            raise GritError(
                f"{name}: is cut short ({len(self._lines)} of {manifest['rows']} documents); make"
                " the index again"
            )
        self._file = open(name, "rb")  # noqa: SIM115 - still there for us when a writer has removed it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self.rows):
            raise IndexError(row)
        start, end = self._lines.offsets[self.rows[row]]
        return indexed_line(
            os.pread(self._file.fileno(), end - start, start), self._lines.where(self.rows[row])
        )


@contextlib.contextmanager
def writing(
    path: Path, settings: dict[str, Any], defaults: dict[str, Any]
) -> Iterator[IndexWriter]:
    """An index to write to, new or there already; one writer at a time.

    Args:
      settings: what the manifest must say beside the counts (model, format, dimensions).
      defaults: what else a new manifest says.

    Raises:
      GritError: the folder holds something else, an index with other settings (the message names
        one), another writer is at work, or the disk cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / MANIFEST).exists() and any(
            file.name != LOCK and not is_temporary(file) for file in path.iterdir()
        ):
            raise GritError(
                f"{path}: the folder is not empty and holds no index; choose another --output"
            )
        with lock_folder(path, "grit index"):
            writer = IndexWriter(path, _claim(path, settings, defaults))
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise GritError(f"{path}: cannot be written ({error.strerror or error})") from None


def _claim(path: Path, settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the index that is there, or a new one."""
    if not (path / MANIFEST).exists():
        manifest = {**defaults, **dict.fromkeys(COUNTS, 0), **settings, "complete": False}
        write_manifest(path, manifest)
        return manifest
    manifest = read_manifest(path)
    for name, value in settings.items():
        if manifest.get(name) != value:
            what = f"has {name} {manifest.get(name)!r}, not {value!r}"
            what = "was made by another model" if name == "model" else what
            raise GritError(
                f"{path}: the index that is there {what}; remove it or choose another --output"
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index; that of another version of the format as it is.

    Raises:
      GritError: there is none, or it cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise GritError(
            f"{path}: there is no index; make one with: grit index MODEL --input corpus.jsonl"
            f" --output {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise GritError(
            f"{path / MANIFEST}: cannot be read ({error}); make the index again with: grit index"
        ) from None
    known = ("model", "kv", "compression", "store", "pooling", "max_length", "complete")
    if (
        not isinstance(manifest, dict)
        or "format" not in manifest
        or manifest["format"] == FORMAT_VERSION
        and (
            any(name not in manifest for name in known)
            or any(not isinstance(manifest.get(name), int) or manifest[name] < 0 for name in COUNTS)
        )
    ):
        raise GritError(
            f"{path / MANIFEST}: is not that of an index; make the index again with: grit index"
        )
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest; a reader sees the old one or the new one."""
    write_json(path / MANIFEST, manifest)


def npy_header(count: int, dim: int) -> bytes:
    """The header of a `[count, dim]` float32 file, of one length whatever the count (NumPy format
    1.0)."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (NPY_HEADER - 10).to_bytes(2, "little")
        + text.ljust(NPY_HEADER - 11).encode()
        + b"\n"
    )
