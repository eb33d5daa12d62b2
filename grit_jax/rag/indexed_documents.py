"""The documents of an index, lines of `documents.jsonl`:

    {"id", "title", "text", "key", "tokens", "metadata"?, "truncated"?}

`key` is that of the document's record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.rag.corpus import CorpusDocument
from grit_jax.rag.index_files import DOCUMENTS, file_name, kept_rows
from grit_jax.rag.manifest import AGAIN, IndexManifest
from grit_jax.rag.search.exact import NonFiniteRows


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
        raise GritError(f"{where}: is damaged ({error}); {AGAIN}") from None


def indexed_document(line: Mapping[str, Any]) -> CorpusDocument:
    """The document of a line of `documents.jsonl`, as the corpus had it."""
    return CorpusDocument(line["id"], line["title"], line["text"], line.get("metadata") or {})


def document_line(
    document: CorpusDocument, key: str, tokens: int, truncated: bool
) -> dict[str, Any]:
    """The line of `documents.jsonl` of a document, with the key of its record and its tokens."""
    return {
        "id": document.id,
        "title": document.title,
        "text": document.text,
        "key": key,
        "tokens": tokens,
        **({"metadata": document.metadata} if document.metadata else {}),
        **({"truncated": True} if truncated else {}),
    }


class IndexedDocuments:
    """Documents by number, deleted ones left out, read from disk when indexed; only their offsets
    are in memory."""

    def __init__(self, path: Path, manifest: IndexManifest):
        name = path / file_name(DOCUMENTS, manifest.generation)
        self.rows = kept_rows(path, manifest)
        self._lines = JsonlFile(name, may_be_empty=True)
        if len(self._lines) < manifest.rows:
            raise GritError(
                f"{name}: is cut short ({len(self._lines)} of {manifest.rows} documents); {AGAIN}"
            )
        # Kept open: a writer that copies the index to the next generation removes the file.
        self._file = open(name, "rb")  # noqa: SIM115

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self.rows):
            raise IndexError(number)
        row = self.rows[number]
        return indexed_line(self._read(row), self._lines.where(row))

    def metadata(self) -> list[dict[str, Any]]:
        """The metadata of every document, in the order of their numbers."""
        return [
            indexed_line(line, self._lines.where(row)).get("metadata") or {}
            if b'"metadata":' in (line := self._read(row))
            else {}
            for row in self.rows.tolist()
        ]

    def _read(self, row: int) -> bytes:
        start, end = self._lines.offsets[row]
        return os.pread(self._file.fileno(), end - start, start)


def non_finite_documents(
    path: Path, documents: IndexedDocuments, error: NonFiniteRows
) -> GritError:
    """The error that names the documents of an index whose vectors are not finite."""
    ids = ", ".join(repr(documents[row]["id"]) for row in error.rows[:3])
    more = f" and {len(error.rows) - 3} more" if len(error.rows) > 3 else ""
    return GritError(
        f"{path}: the vectors of documents {ids}{more} are not finite (NaN or infinity); {AGAIN},"
        " into a new folder"
    )
