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


def test_messages_name_the_store_and_not_its_folder(server, index_path):
    """Wherever a client can meet one: clients do not know the server's folders."""
    [store] = server.service.stores
    assert store.path == index_path
    shown = lambda text: server.service.stores.named(text.format(index_path))
    assert shown("{}: bad") == "store 'docs': bad"
    assert shown("its record in {}/kv-1/d cannot be read") == (
        "its record in store 'docs' cannot be read"
    )
    assert shown("{}-other/kv: bad") == f"{index_path}-other/kv: bad"
    unknown = {"where": "no_such == 1"}
    messages = [{"role": "user", "content": "Amber?"}]
    tool = {"type": "file_search", "vector_store_ids": ["docs"], **unknown}
    requests = (
        ("/v1/vector_stores/docs/search", {"query": "x", **unknown}, "in store 'docs'"),
        ("/v1/chat/completions", {"messages": messages, "store": "docs", **unknown}, "in store"),
        ("/v1/responses", {"input": "Amber?", "tools": [tool]}, "in store 'docs'"),
        ("/v1/rerank", {"query": "x", "store": "docs", **unknown}, "in store 'docs'"),
        ("/v1/rerank", {"query": "x", "store": "docs", "document_ids": ["z"]}, "store 'docs':"),
        ("/v1/score", {"queries": "x", "store": "docs", "document_ids": ["z"]}, "store 'docs':"),
    )
    for path, body, words in requests:
        status, error = server.error(path, **body)
        assert status == 400 and words in error["message"], (path, error)
        assert "/" not in error["message"].replace("store/", ""), (path, error)


def test_no_index(tiny_model, tmp_path):
    with pytest.raises((GritError, OSError)):
        Store("x", tmp_path / "none", {"tiny": tiny_model}, 256)
