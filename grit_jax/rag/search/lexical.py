"""The BM25 index beside an index's vectors, for search by words.

Like a Milvus collection it is made from the index's own files, which stay authoritative, and the
manifest says how much of them it covers (`LexicalFiles`). A writer makes it when the documents are
committed, in a new folder (`lexical.N`), and replaces the manifest; a reader sees the old one or
the new one. Where a writer was killed before, or the index was made by a version without it, the
reader builds it in memory: no committed document is missing from a search.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from grit_jax.data.bm25 import BM25, WORDS
from grit_jax.data.formats import titled
from grit_jax.errors import GritError
from grit_jax.rag.index_files import IndexWriter
from grit_jax.rag.indexed_documents import IndexedDocuments
from grit_jax.rag.manifest import IndexManifest, LexicalFiles
from grit_jax.runtime.files import is_temporary, new_folder
from grit_jax.runtime.progress import progress, say

FOLDER = "lexical"
MANY_DOCUMENTS = 50_000  # from here on building takes seconds and shows its progress


def update(writer: IndexWriter, quiet: bool = False) -> None:
    """Brings the BM25 index to what the files of an index hold, and removes the previous one.

    Raises:
      GritError: it cannot be written.
    """
    manifest = writer.manifest
    for path in filter(is_temporary, _folders(writer.path)):  # left by a writer that was killed
        _remove(path)
    folder = manifest.lexical.folder if manifest.lexical is not None else None
    if not manifest.documents:
        writer.commit(lexical=None)
        folder = None
    elif not _is_current(manifest) or not _readable(writer.path, manifest):
        # A folder of a name that no manifest has: a reader may have any other one open.
        number = max((_number(path) for path in _folders(writer.path)), default=-1) + 1
        folder = f"{FOLDER}.{number}"
        documents = IndexedDocuments(writer.path, manifest)
        with new_folder(writer.path / folder) as made:
            _build(documents, quiet).save(made)
            for file in made.iterdir():
                _flush(file)
        writer.commit(
            lexical=LexicalFiles(
                folder, manifest.generation, manifest.rows, manifest.deleted, WORDS
            )
        )
    for path in _folders(writer.path):
        if path.name != folder:
            _remove(path)


def open_lexical(path: Path, manifest: IndexManifest, documents: IndexedDocuments) -> BM25:
    """The BM25 index of an index; one that is missing, damaged or behind the index's files is built
    in memory, with a warning."""
    if not manifest.documents:
        return BM25([])
    if _is_current(manifest):
        assert manifest.lexical is not None
        try:
            return _load(path, manifest)
        except GritError as error:
            reason = str(error)
    elif manifest.lexical is None:
        reason = f"{path}: has no lexical index"
    else:
        reason = f"{path}: its lexical index does not cover all documents"
    say(
        f"warning: {reason}; building it in memory for this run (the same grit index again keeps"
        " it in the index)"
    )
    return _build(documents)


def lexical_bytes(path: Path, manifest: IndexManifest) -> int:
    """Bytes of the files of the BM25 index."""
    if manifest.lexical is None:
        return 0
    return sum(file.stat().st_size for file in (path / manifest.lexical.folder).glob("*"))


def _load(path: Path, manifest: IndexManifest) -> BM25:
    assert manifest.lexical is not None
    folder = path / manifest.lexical.folder
    index = BM25.load(folder)
    if index.size != manifest.documents:
        raise GritError(f"{folder}: has {index.size} documents, expected {manifest.documents}")
    return index


def _readable(path: Path, manifest: IndexManifest) -> bool:
    try:
        _load(path, manifest)
    except GritError:
        return False
    return True


def _is_current(manifest: IndexManifest) -> bool:
    """Whether the BM25 index is of exactly the documents of the index."""
    files = manifest.lexical
    return files is not None and (
        (files.generation, files.rows, files.deleted, files.words)
        == (manifest.generation, manifest.rows, manifest.deleted, WORDS)
    )


def _build(documents: IndexedDocuments, quiet: bool = False) -> BM25:
    shown = progress(
        range(len(documents)),
        "lexical",
        "documents",
        quiet=quiet or len(documents) < MANY_DOCUMENTS,
    )

    def contents() -> Iterator[str]:
        for number in shown:
            line = documents[number]
            yield titled(line["title"], line["text"])

    return BM25(contents())


def _folders(path: Path) -> list[Path]:
    """Folders of BM25 indexes, and what killed writers left of some."""
    return [
        folder
        for folder in path.iterdir()
        if folder.name.startswith((f"{FOLDER}.", f".{FOLDER}."))
        and (is_temporary(folder) or _number(folder) >= 0)
    ]


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    """Flushes a file to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix(f"{FOLDER}.")
    return int(digits) if digits.isdecimal() else -1
