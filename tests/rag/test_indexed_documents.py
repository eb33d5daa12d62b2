"""The documents of an index as they are read back."""

from __future__ import annotations

import json

import pytest
from stored_rows import ROWS, write_rows

from grit_jax.errors import GritError
from grit_jax.rag.corpus import CorpusDocument
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.indexed_documents import (
    IndexedDocuments,
    document_line,
    indexed_document,
    indexed_line,
)
from grit_jax.rag.manifest import read_manifest


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"id": "a", "title": "", "text": "t"}'])
def test_a_damaged_line(data):
    with pytest.raises(GritError, match=r"^documents\.jsonl:7: is damaged .*grit index"):
        indexed_line(data, "documents.jsonl:7")


@pytest.mark.parametrize("metadata", [{}, {"a": [1, {"b": None}], "metadata": {"é": True}}])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_document_as_a_line_and_back(metadata, truncated):
    document = CorpusDocument("a", "T", "x", metadata)
    line = indexed_line(json.dumps(document_line(document, "k", 3, truncated)).encode(), "d:1")
    assert indexed_document(line) == document
    assert (line["key"], line["tokens"], line.get("truncated", False)) == ("k", 3, truncated)


def test_metadata_of_the_documents_that_are_not_deleted(model, tmp_path):
    rows = [{**row, "metadata": {"n": i}} if i % 3 else row for i, row in enumerate(ROWS)]
    rows[6] = {"id": "d6", "text": 'a text with "metadata": in it'}
    path = write_rows(tmp_path / "c.jsonl", rows)
    build_index(model, path, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    write_rows(path, rows[:2] + rows[5:])
    build_index(
        model, path, tmp_path / "index", IndexOptions(kv="none", delete_missing=True), quiet=True
    )
    documents = IndexedDocuments(tmp_path / "index", read_manifest(tmp_path / "index"))
    expected = [{"n": i} if i % 3 else {} for i in (0, 1, *range(5, 40))]
    expected[3] = {}  # d6
    assert documents.metadata() == expected
    assert len(Index.open(tmp_path / "index", model)) == 37
