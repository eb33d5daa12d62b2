"""Stores: an index that grows while it is served."""

from __future__ import annotations

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.index import IndexOptions, build_index
from grit_jax.serving.errors import ApiError
from grit_jax.serving.stores import Store, Stores


def test_documents_that_are_added_are_found(tiny_model, corpus, tmp_path, sentences):
    """Without a pause: what was prepared before can still be read."""
    rows = corpus.read_text().splitlines(True)
    grown = tmp_path / "c.jsonl"
    grown.write_text("".join(rows[:5]))
    path = tmp_path / "index"
    build_index(tiny_model, grown, path, IndexOptions(), quiet=True)
    store = Store("docs", path, {"tiny": tiny_model}, 256)
    before = store.current()
    assert store.current() is before and store.body()["file_counts"]["total"] == 5
    old = before.prepare(sentences[2], "doc", new_tokens=4)
    new = {"id": "new", "text": sentences[40]}
    grown.write_text("".join(rows[:5]) + json.dumps(new) + "\n")
    build_index(tiny_model, grown, path, IndexOptions(), quiet=True)
    found = store.current().prepare(sentences[40], "doc", new_tokens=4)
    assert [d["id"] for d in found.documents] == ["new"] and found.cached_tokens > 0
    assert store.body()["file_counts"]["total"] == 6
    answers = tiny_model.generate_ids([old.ids], records=[old.records])
    assert len(answers.tokens) == 1
    # A writer that has half done its work is no reason to fail.
    (path / "index.json").write_text("{")
    assert [d["id"] for d in store.current().prepare(sentences[40], "doc", new_tokens=4).documents]


def test_names():
    with pytest.raises(ApiError, match="there is no store 'x'; this server has none"):
        Stores().get("x")


def test_no_index(tiny_model, tmp_path):
    with pytest.raises((GritError, OSError)):
        Store("x", tmp_path / "none", {"tiny": tiny_model}, 256)
