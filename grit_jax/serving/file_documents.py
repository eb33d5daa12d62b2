"""The documents of an uploaded file: lines of a corpus, or a text in chunks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from grit_jax.data.formats import LineError
from grit_jax.rag.chunking import Chunking, chunks
from grit_jax.rag.corpus import parse_document
from grit_jax.serving.file_folder import UploadedFile
from grit_jax.serving.sources import FILE_ID, FILENAME
from grit_jax.text.tokenizer import Tokenizer

LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md", ".markdown", ".rst", ".text")
AUTO_TOKENS, AUTO_OVERLAP = 400, 50  # of chunks, where the request says nothing


class FileProblem(Exception):
    """A file that cannot be added.

    Args:
      code: OpenAI's word, "unsupported_file" or "invalid_file".
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def auto_chunking(room: int) -> Chunking:
    """Chunks for an index whose documents have room for so many tokens of text."""
    tokens = min(AUTO_TOKENS, room)
    return Chunking(tokens, min(AUTO_OVERLAP, tokens // 8))


def documents_of(
    file: UploadedFile,
    content: bytes,
    attributes: Mapping[str, Any],
    tokenizer: Tokenizer,
    chunking: Chunking,
) -> list[dict[str, Any]]:
    """The lines of a corpus that hold a file: `{"id", "title", "text", "metadata"}`.

    A corpus keeps its ids, and metadata of its own before `attributes`. The chunks of a text are
    numbered from 1: `file-...#1`.

    Raises:
      FileProblem: a file of another kind, not UTF-8, without text, or with a line that is no
        document.
    """
    ending = os.path.splitext(file.filename)[1].lower()
    if ending not in (*LINES, *TEXTS):
        raise FileProblem(
            "unsupported_file",
            f"{file.filename}: expected a corpus ({', '.join(LINES)}) or a text"
            f" ({', '.join(TEXTS)})",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileProblem(
            "invalid_file", f"{file.filename}: is not UTF-8 text (byte {error.start})"
        ) from None
    own = {FILE_ID: file.id, FILENAME: file.filename}
    if ending in TEXTS:
        documents = [
            {
                "id": f"{file.id}#{number}",
                "title": "",
                "text": chunk,
                "metadata": {**attributes, **own},
            }
            for number, chunk in enumerate(chunks(text, tokenizer, chunking), 1)
        ]
    else:
        documents = _lines(file.filename, text, attributes, own)
    if not documents:
        raise FileProblem("invalid_file", f"{file.filename}: there is no text in this file")
    return documents


def _lines(
    filename: str, text: str, attributes: Mapping[str, Any], own: Mapping[str, Any]
) -> list[dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        place = f"{filename}:{number}"
        try:
            document = parse_document(line, place)
        except LineError as error:
            raise FileProblem("invalid_file", str(error)) from None
        if document.id in documents:
            raise FileProblem("invalid_file", f"{place}: duplicate id {document.id!r}")
        if taken := sorted(own.keys() & document.metadata.keys()):
            raise FileProblem(
                "invalid_file",
                f"{place}: the metadata has the key {taken[0]!r}, which names the uploaded file;"
                " rename it",
            )
        documents[document.id] = {
            "id": document.id,
            "title": document.title,
            "text": document.text,
            "metadata": {**attributes, **document.metadata, **own},
        }
    return list(documents.values())
