"""Which file a document of a store belongs to.

A document of an uploaded file has the file's id and name in its metadata, so that the index says it
by itself. Every other document, one that `grit index` put there, is a file of its own, and its id
that of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grit_jax.rag.index import Index

FILE_ID, FILENAME = "file_id", "filename"  # keys of the metadata
PREFIX = "file-"  # of the ids of uploaded files


def file_of(line: Mapping[str, Any]) -> str:
    """The id of the file of a document, a line of the index (`rag/indexed_documents.py`)."""
    return str((line.get("metadata") or {})[FILE_ID] if is_uploaded(line) else line["id"])


def is_uploaded(line: Mapping[str, Any]) -> bool:
    """Whether a document came with an uploaded file."""
    metadata = line.get("metadata") or {}
    id = metadata.get(FILE_ID)
    return isinstance(id, str) and id.startswith(PREFIX) and isinstance(metadata.get(FILENAME), str)


def source_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The file of a document and its attributes, as in search results."""
    metadata = dict(line.get("metadata") or {})
    name = line["title"] or line["id"]
    if is_uploaded(line):
        del metadata[FILE_ID]
        name = metadata.pop(FILENAME)
    return {
        "file_id": file_of(line),
        "filename": name,
        "attributes": metadata,
        "document_id": line["id"],
    }


def files_of(index: Index) -> dict[str, list[int]]:
    """The rows of each file's documents, by the ids of the files. Reads all lines of the index."""
    files: dict[str, list[int]] = {}
    for row in range(len(index)):
        files.setdefault(file_of(index.documents[row]), []).append(row)
    return files
