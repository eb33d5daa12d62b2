"""The files of an index, and how they grow so that a kill at any instant loses nothing that was committed.

    index.json       the manifest: what made the index, and how much of the other files counts
    documents.jsonl  {"id", "title", "text", "key", "tokens"} a line
    vectors.npy      float32 [N, D], a NumPy file
    kv/              the documents' records (`store.DocumentStore`)

A batch is appended and flushed to disk everywhere before the manifest is replaced, which is what commits it. What
stands behind the committed end of a file comes from a writer that was killed, and is cut off by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.types import GritError

MANIFEST, DOCUMENTS, VECTORS, KV, LOCK = "index.json", "documents.jsonl", "vectors.npy", "kv", ".lock"
NPY_HEADER = 128  # bytes; the shape in it is rewritten in place as the file grows


class IndexWriter:
    """Appends batches of documents to an index. Open one with `writing`."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self._dim = manifest["dim"]
        # Open for as long as the writer is: `writing` closes them.
        self._documents = open(path / DOCUMENTS, "ab")  # noqa: SIM115
        self._vectors = open(path / VECTORS, "r+b")  # noqa: SIM115
        self._recover()

    def append(self, vectors: np.ndarray, documents: Sequence[dict[str, Any]]) -> None:
        """Commits a batch: when this returns, its documents survive a kill. Their records are in the store by then."""
        lines = b"".join(json.dumps(d, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for d in documents)
        self._documents.write(lines)
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        count = self.manifest["documents"] + len(documents)
        end = self._vectors.tell()
        self._vectors.seek(0)
        self._vectors.write(npy_header(count, self._dim))
        self._vectors.seek(end)
        for file in (self._documents, self._vectors):
            file.flush()
            os.fsync(file.fileno())
        self.manifest.update(
            documents=count,
            tokens=self.manifest["tokens"] + sum(d["tokens"] for d in documents),
            documents_bytes=self.manifest["documents_bytes"] + len(lines),
        )
        write_manifest(self.path, self.manifest)

    def finish(self) -> None:
        """Says in the manifest that the corpus is indexed to its end."""
        if not self.manifest["complete"]:
            self.manifest["complete"] = True
            write_manifest(self.path, self.manifest)

    def close(self) -> None:
        """Closes the files; nothing is committed by it."""
        self._documents.close()
        self._vectors.close()

    def _recover(self) -> None:
        """Cuts off what a killed writer left uncommitted."""
        count, size = self.manifest["documents"], self.manifest["documents_bytes"]
        wanted = NPY_HEADER + count * self._dim * 4
        if self._documents.seek(0, os.SEEK_END) < size or (count and self._vectors.seek(0, os.SEEK_END) < wanted):
            raise GritError(f"{self.path}: the index is damaged (files are shorter than index.json says); remove it")
        self._documents.truncate(size)
        self._documents.seek(size)
        self._vectors.truncate(wanted)
        self._vectors.seek(0)
        self._vectors.write(npy_header(count, self._dim))
        self._vectors.seek(wanted)


@contextlib.contextmanager
def writing(path: Path, settings: dict[str, Any]) -> Iterator[IndexWriter]:
    """An index to append to, new or there already; one writer at a time.

    Args:
      settings: what the manifest must say beside the counts (model, format, dimensions).

    Raises:
      GritError: the folder holds something else, an index with other settings (the message names one), another
        writer is at work, or the disk cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / MANIFEST).exists() and any(file.name != LOCK for file in path.iterdir()):
            raise GritError(f"{path}: the folder is not empty and holds no index; choose another --output")
        with open(path / LOCK, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GritError(f"{path}: another grit index is writing here; wait until it is done") from None
            manifest = _claim(path, settings)
            (path / VECTORS).touch()
            writer = IndexWriter(path, manifest)
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise GritError(f"{path}: cannot be written ({error.strerror or error})") from None


def _claim(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the index that is there, or a new one."""
    if not (path / MANIFEST).exists():
        manifest = {**settings, "documents": 0, "tokens": 0, "documents_bytes": 0, "complete": False}
        write_manifest(path, manifest)
        return manifest
    manifest = read_manifest(path)
    for name, value in settings.items():
        if manifest.get(name) != value:
            what = f"has {name} {manifest.get(name)!r}, not {value!r}"
            what = "was made by another model" if name == "model" else what
            raise GritError(f"{path}: the index that is there {what}; remove it or choose another --output")
    if manifest["complete"]:
        manifest["complete"] = False
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index.

    Raises:
      GritError: there is none, or it cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise GritError(
            f"{path}: there is no index; make one with: grit index MODEL --input corpus.jsonl --output {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise GritError(f"{path / MANIFEST}: cannot be read ({error}); make the index again with: grit index") from None
    known = ("format", "model", "dim", "documents", "tokens", "documents_bytes", "complete")
    counts = ("dim", "documents", "tokens", "documents_bytes")
    if (
        not isinstance(manifest, dict)
        or any(name not in manifest for name in known)
        or any(not isinstance(manifest[name], int) or manifest[name] < 0 for name in counts)
    ):
        raise GritError(f"{path / MANIFEST}: is not that of an index; make the index again with: grit index")
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest; a reader sees the old one or the new one."""
    temporary = path / (MANIFEST + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MANIFEST)
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def npy_header(count: int, dim: int) -> bytes:
    """The header of a `[count, dim]` float32 file, of one length whatever the count (NumPy format 1.0)."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}"
    return b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little") + text.ljust(NPY_HEADER - 11).encode() + b"\n"
