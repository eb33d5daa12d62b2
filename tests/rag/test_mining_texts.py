"""Texts of an index and of training lines by hash."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_model import vector
from stored_rows import write_rows

from grit_jax.data.formats import Text
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.mining_texts import (
    DocumentHashes,
    KnownPositives,
    encode_passages,
    encode_queries,
    text_hash,
)

ROWS = [
    {"id": "a", "text": "first"},
    {"id": "b", "title": "Title", "text": "second"},
    {"id": "c", "text": "first"},
    {"id": "d", "text": "second"},
]


@pytest.fixture
def index(model, tmp_path):
    corpus = write_rows(tmp_path / "c.jsonl", ROWS)
    build_index(model, corpus, tmp_path / "i", IndexOptions(kv="none"), quiet=True)
    return Index.open(tmp_path / "i", model)


def test_documents_are_found_by_their_text(index):
    documents = DocumentHashes(index)
    assert documents.row("first") == 0 and documents.row(" first\n") == 0
    assert documents.row("Title second") == 1
    assert documents.row("second") in (1, 3)
    assert documents.row("third") is None and documents.row("Title") is None
    assert documents.hashes.tolist() == [
        text_hash(text) for text in ("first", "Title second", "first", "second")
    ]
    assert len({text_hash(str(number)) for number in range(10_000)}) == 10_000


def test_positives_of_a_query_come_from_all_lines(tmp_path):
    lines = [("q", ["p1"]), (["i", "r"], [["", "p2"]]), (["other", "q"], ["p3", "p4"])]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": q, "pos": p}) + "\n" for q, p in lines))
    known = KnownPositives(path)
    assert set(known.of("q").tolist()) == {text_hash(p) for p in ("p1", "p3", "p4")}
    assert known.of("r").tolist() == [text_hash("p2")] and not len(known.of("s"))


def test_each_query_is_encoded_with_its_instruction(model):
    asked = []
    form = model.encoder.format
    model.encoder.format = lambda texts, instruction="", length=9: (
        asked.append((texts, instruction)) or form(texts, instruction, length)
    )
    queries = [Text("i", "one"), Text(None, "two"), Text("i", "three and more")]
    vectors, truncated = encode_queries(model, queries, 8)
    assert asked == [(["one", "three and more"], "i"), (["two"], "")] and truncated == 1
    for row, text in zip(vectors, ("one", "two", "three a"), strict=True):
        np.testing.assert_array_equal(row, vector([256, *text.encode()]))
    assert encode_passages(model, [], 8).shape == (0, 8)
