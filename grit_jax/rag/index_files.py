"""The files of an index, and how they change so that a process killed at any instant loses nothing
that was committed.

    index.json       the manifest (`manifest.py`)
    documents.jsonl  the documents, a line and row each (`indexed_documents.py`)
    vectors.npy      float32 [rows, D], a NumPy file
    deleted.bin      int64 numbers of the rows whose document was replaced or deleted
    lexical.N/       a BM25 index of the documents (`search/lexical.py`)
    milvus.db        a copy of the vectors for Milvus to search, if it does (`search/milvus.py`)
    kv/              the document store (`store.py`), unless it is kept elsewhere
    quality.json     what answers lose by starting from the records (`quality.py`)

Files only grow. A batch is appended and flushed to disk everywhere before the manifest is replaced,
which commits it: new rows and deleted rows in one step. Bytes behind the committed end of a file
were left by a writer that was killed, and the next writer cuts them off. When many rows are
deleted, the others are copied to the files of a next generation (`documents.1.jsonl`, ...), and the
manifest changes over to those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.rag.manifest import (
    AGAIN,
    FORMAT_VERSION,
    MANIFEST,
    IndexManifest,
    keeps_records_inside,
    new_index_id,
    read_manifest,
    store_location,
    store_path,
    write_manifest,
)
from grit_jax.rag.search.exact import StoredVectors
from grit_jax.rag.store import store_owner
from grit_jax.runtime.files import LOCK, is_temporary, lock_folder, write_file

DOCUMENTS, VECTORS, DELETED = "documents.jsonl", "vectors.npy", "deleted.bin"
RECEIPT = "quality.json"  # see `quality.py`
DELETED_IN_FORMAT_2 = "dead.bin"
NPY_HEADER = 128  # bytes; the shape in it is rewritten in place as the file grows
COPY_ROWS = 4096  # at a time, into the next generation


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """What an index is made with.

    Attributes:
      model, pooling, kv, dim: as in `IndexManifest`.
      max_length: tokens of a document; None: that of the index, `default_max_length` of a new one.
      default_max_length: see `max_length`.
      store: a URL, or a path relative to the working directory; None: where the index has it.
    """

    model: dict[str, Any]
    pooling: str
    kv: str
    dim: int
    default_max_length: int
    max_length: int | None = None
    store: str | None = None


def file_name(name: str, generation: int) -> str:
    """The name of a file in a generation of the index."""
    if not generation:
        return name
    stem, dot, end = name.partition(".")
    return f"{stem}.{generation}{dot}{end}"


class IndexWriter:
    """Appends documents to an index and deletes others. Open one with `writing`; `manifest` is what
    is committed."""

    def __init__(self, path: Path, manifest: IndexManifest):
        self.path, self.manifest = path, manifest
        # Open for as long as the writer is: `writing` closes them.
        self._open(manifest)
        self._recover()

    def append(
        self,
        vectors: np.ndarray,
        documents: Sequence[dict[str, Any]],
        deleted: Mapping[int, int] | None = None,
    ) -> None:
        """Commits new rows and the deletion of others. Once this returns they are on disk.

        Args:
          vectors: float32 `[N, D]`, one for each document.
          documents: the lines of `documents.jsonl`; their records are in the store already.
          deleted: rows (not deleted yet) and their tokens.
        """
        m, deleted = self.manifest, deleted or {}
        lines = b"".join(
            json.dumps(d, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            for d in documents
        )
        self._documents.write(lines)
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        self._deleted.write(np.fromiter(deleted, "<i8").tobytes())
        self._end_vectors(m.rows + len(documents))
        self._flush()
        self.commit(
            documents=m.documents + len(documents) - len(deleted),
            tokens=m.tokens + sum(d["tokens"] for d in documents) - sum(deleted.values()),
            rows=m.rows + len(documents),
            deleted=m.deleted + len(deleted),
            documents_bytes=m.documents_bytes + len(lines),
            complete=False,
        )

    def commit(self, **changes: Any) -> None:
        """Changes entries of the manifest."""
        changed = dataclasses.replace(self.manifest, **changes)
        if changed != self.manifest:
            write_manifest(self.path, changed)
            self.manifest = changed

    def next_generation(self) -> None:
        """Copies the rows that are not deleted, in their order, to new files and changes over to
        them."""
        m = self.manifest
        rows, vectors = kept_rows(self.path, m), map_vectors(self.path, m)
        lines = JsonlFile(self.path / file_name(DOCUMENTS, m.generation))
        new = dataclasses.replace(
            m, generation=m.generation + 1, rows=len(rows), deleted=0, documents_bytes=0
        )
        self.close()
        self._remove(new.generation)  # left by a writer that was killed here
        self._open(new)
        self._end_vectors(0)
        documents_bytes = 0
        for start in range(0, len(rows), COPY_ROWS):
            copied = rows[start : start + COPY_ROWS]
            data = b"".join(lines[row] for row in copied)
            self._documents.write(data)
            self._vectors.write(np.ascontiguousarray(vectors[copied], "<f4").tobytes())
            documents_bytes += len(data)
        self._end_vectors(len(rows))
        self._flush()
        self.manifest = dataclasses.replace(new, documents_bytes=documents_bytes)
        write_manifest(self.path, self.manifest)
        self._remove(m.generation)

    def close(self) -> None:
        """Closes the files; commits nothing."""
        for file in (self._documents, self._vectors, self._deleted):
            file.close()

    def _remove(self, generation: int) -> None:
        for name in (DOCUMENTS, VECTORS, DELETED):
            (self.path / file_name(name, generation)).unlink(missing_ok=True)

    def _open(self, manifest: IndexManifest) -> None:
        documents, vectors, deleted = (
            self.path / file_name(name, manifest.generation)
            for name in (DOCUMENTS, VECTORS, DELETED)
        )
        vectors.touch()
        self._documents, self._deleted = open(documents, "ab"), open(deleted, "ab")  # noqa: SIM115
        self._vectors = open(vectors, "r+b")  # noqa: SIM115

    def _end_vectors(self, rows: int) -> None:
        """Writes the header for `rows` rows and moves behind the last of them."""
        self._vectors.seek(0)
        self._vectors.write(npy_header(rows, self.manifest.dim))
        self._vectors.seek(NPY_HEADER + rows * self.manifest.dim * 4)

    def _flush(self) -> None:
        for file in (self._documents, self._vectors, self._deleted):
            file.flush()
            os.fsync(file.fileno())

    def _recover(self) -> None:
        """Cuts off what a killed writer left uncommitted."""
        m = self.manifest
        sizes = (
            (self._documents, m.documents_bytes),
            (self._vectors, NPY_HEADER + m.rows * m.dim * 4 if m.rows else 0),
            (self._deleted, m.deleted * 8),
        )
        for file, size in sizes:
            if file.seek(0, os.SEEK_END) < size:
                raise GritError(
                    f"{self.path}: the index is damaged ({Path(file.name).name} is shorter than"
                    f" {MANIFEST} says); remove it"
                )
            file.truncate(size)
            file.seek(size)
        self._end_vectors(m.rows)
        if m.generation:
            self._remove(m.generation - 1)


def kept_rows(path: Path, manifest: IndexManifest) -> np.ndarray:
    """The rows of an index that are not deleted, in order.

    Raises:
      GritError: a file is damaged.
    """
    kept = np.ones(manifest.rows, bool)
    kept[deleted_rows(path, manifest)] = False
    rows = np.flatnonzero(kept)
    if len(rows) != manifest.documents:
        raise GritError(
            f"{_deleted_file(path, manifest)}: is damaged ({len(rows)} rows are left, expected"
            f" {manifest.documents}); {AGAIN}"
        )
    return rows


def deleted_rows(path: Path, manifest: IndexManifest) -> np.ndarray:
    """The deleted rows of an index, in the order of their deletion.

    Raises:
      GritError: the file is damaged.
    """
    if not manifest.deleted:
        return np.zeros(0, np.int64)
    name = _deleted_file(path, manifest)
    try:
        deleted = np.fromfile(name, "<i8", manifest.deleted)
    except OSError as error:
        raise GritError(f"{name}: cannot be read ({error}); {AGAIN}") from None
    if len(deleted) and not 0 <= deleted.min() <= deleted.max() < manifest.rows:
        raise GritError(f"{name}: is damaged (it has rows that do not exist); {AGAIN}")
    return deleted


def _deleted_file(path: Path, manifest: IndexManifest) -> Path:
    name = DELETED if manifest.format == FORMAT_VERSION else DELETED_IN_FORMAT_2
    return path / file_name(name, manifest.generation)


def map_vectors(path: Path, manifest: IndexManifest) -> np.ndarray:
    """The vectors of all rows, deleted ones included, memory-mapped.

    Raises:
      GritError: the file is damaged.
    """
    name = path / file_name(VECTORS, manifest.generation)
    if not manifest.rows:
        return np.zeros((0, manifest.dim), np.float32)
    try:
        return np.memmap(name, "<f4", "r", NPY_HEADER, (manifest.rows, manifest.dim))
    except (OSError, ValueError) as error:
        raise GritError(f"{name}: cannot be read ({error}); {AGAIN}") from None


class _SelectedVectors:
    """Some rows of a memory-mapped file, read when indexed."""

    def __init__(self, mapped: np.ndarray, rows: np.ndarray):
        self._mapped, self._rows = mapped, rows
        self.shape = (len(rows), mapped.shape[1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._mapped[self._rows[rows]]


def kept_vectors(path: Path, manifest: IndexManifest, rows: np.ndarray) -> StoredVectors:
    """The vectors of the rows that are not deleted (`kept_rows`), memory-mapped.

    Raises:
      GritError: the file is damaged.
    """
    mapped = map_vectors(path, manifest)
    return _SelectedVectors(mapped, rows) if manifest.deleted else mapped


# ---- opening an index to write to it -------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path, settings: IndexSettings) -> Iterator[IndexWriter]:
    """Opens an index to write to, a new or an existing one; one writer at a time.

    Raises:
      GritError: the folder holds something else, an index with other settings (the message names
        one) or a copy of another index, another writer is at work, or the disk cannot be written.
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
            writer = IndexWriter(path, _claim(path, settings))
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise GritError(f"{path}: cannot be written ({error.strerror or error})") from None


def _claim(path: Path, settings: IndexSettings) -> IndexManifest:
    """The manifest of the existing index, checked and brought up to date, or that of a new one."""
    if not (path / MANIFEST).exists():
        manifest = IndexManifest(
            model=settings.model,
            pooling=settings.pooling,
            kv=settings.kv,
            dim=settings.dim,
            max_length=settings.max_length or settings.default_max_length,
            index_id=new_index_id(),
            folder=str(path.resolve()),
            store=store_location(settings.store, path) if settings.store is not None else None,
        )
        write_manifest(path, manifest)
        return manifest
    manifest = read_manifest(path)
    _check_settings(path, manifest, settings)
    _refuse_copy(path, manifest)
    claimed = dataclasses.replace(
        manifest,
        format=FORMAT_VERSION,
        folder=str(path.resolve()),
        index_id=manifest.index_id or new_index_id(),
        store=_claimed_store(path, manifest, settings.store),
    )
    if claimed != manifest:
        if manifest.format != FORMAT_VERSION and manifest.deleted:
            _copy_deleted(path, manifest, claimed)
        write_manifest(path, claimed)
    if manifest.format != FORMAT_VERSION:
        _deleted_file(path, manifest).unlink(missing_ok=True)
    return claimed


def _check_settings(path: Path, manifest: IndexManifest, settings: IndexSettings) -> None:
    for name in ("model", "pooling", "kv", "dim", "max_length"):
        existing, requested = getattr(manifest, name), getattr(settings, name)
        if requested is None or existing == requested:
            continue
        difference = (
            "was made by another model"
            if name == "model"
            else f"has {name} {existing}, not {requested}"
        )
        raise GritError(
            f"{path}: the existing index {difference}; remove it or choose another --output"
        )


def _refuse_copy(path: Path, manifest: IndexManifest) -> None:
    """Refuses to write to a copy that shares its records or its Milvus collection with the index it
    was copied from; an index whose folder was moved is no copy."""
    folder = Path(manifest.folder)
    if not manifest.folder or folder == path.resolve():
        return
    if keeps_records_inside(manifest) and (manifest.milvus is None or manifest.milvus.uri is None):
        return
    try:
        original = read_manifest(folder)
    except GritError:
        return
    if original.index_id == manifest.index_id:
        raise GritError(
            f"{path}: is a copy of the index {folder} and shares its document store or Milvus"
            " collection, which updating the copy would change; update that index, or make a new"
            " one with another --output and --store"
        )


def _claimed_store(path: Path, manifest: IndexManifest, store: str | None) -> str | None:
    """`store` of an existing index, which `--store` may name again, or anew where it was moved."""
    if store is None:
        if manifest.relative_store_of_format_2:
            raise GritError(
                f"{path}: was made with --store {manifest.store}, relative to a folder that is not"
                " known any more; give --store with its path again"
            )
        return manifest.store
    location = store_location(store, path)
    if manifest.relative_store_of_format_2 or manifest.compression is None:
        return location
    same = "://" not in location and (
        (path / location).resolve() == (path / (manifest.store or "kv")).resolve()
    )
    if same or location == manifest.store:
        return manifest.store
    moved = dataclasses.replace(manifest, format=FORMAT_VERSION, store=location)
    owner = store_owner(store_path(path, moved))
    if manifest.index_id and owner == manifest.index_id:
        return location
    # A store of an earlier version says nothing; it is checked for this index's records later.
    if owner is None and store_owner(store_path(path, manifest)) != manifest.index_id:
        return location
    raise GritError(
        f"{path}: keeps its records in {store_path(path, manifest)}; {store} is not the document"
        " store of this index, choose another --output or leave --store out"
    )


def _copy_deleted(path: Path, old: IndexManifest, new: IndexManifest) -> None:
    """`dead.bin` of format 2 under its name of today."""
    source, target = _deleted_file(path, old), _deleted_file(path, new)
    with source.open("rb") as reading, write_file(target) as file:
        shutil.copyfileobj(reading, file)


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
