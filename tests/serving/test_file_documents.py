"""The documents of an uploaded file."""

from __future__ import annotations

import json

import pytest

from grit_jax.rag.chunking import Chunking
from grit_jax.serving.file_documents import FileProblem, auto_chunking, documents_of
from grit_jax.serving.file_folder import UploadedFile


def documents(tiny_model, name: str, content: bytes, **attributes):
    file = UploadedFile("file-1", name, len(content), 0, "assistants")
    return documents_of(file, content, attributes, tiny_model.tokenizer, Chunking(20, 0))


def test_lines_of_every_kind_of_line_end(tiny_model):
    """A line separator within a string is no end of a line."""
    rows = [{"_id": 7, "text": "a\u2028b"}, {"id": "y", "title": "T", "text": "c"}]
    text = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    made = documents(tiny_model, "c.JSONL", b"\xef\xbb\xbf" + text.encode(), lang="en")
    assert [(d["id"], d["title"], d["text"]) for d in made] == [
        ("7", "", "a\u2028b"),
        ("y", "T", "c"),
    ]
    own = {"lang": "en", "file_id": "file-1", "filename": "c.JSONL"}
    assert all(document["metadata"] == own for document in made)


def test_a_text(tiny_model):
    text = "A first amber paragraph.\n\nA second one, on quiet rivers."
    made = documents(tiny_model, "a.md", text.encode())
    assert [d["id"] for d in made] == [f"file-1#{n}" for n in range(1, len(made) + 1)]
    assert len(made) > 1 and "".join("".join(d["text"] for d in made).split()) == "".join(
        text.split()
    )


def test_a_surrogate_is_an_invalid_file(tiny_model):
    with pytest.raises(FileProblem, match="c.jsonl:1: .*surrogate") as error:
        documents(tiny_model, "c.jsonl", b'{"id": "x", "text": "\\ud800"}')
    assert error.value.code == "invalid_file"


def test_chunks_by_default():
    assert auto_chunking(4000) == Chunking(400, 50)
    assert auto_chunking(80) == Chunking(80, 10)
