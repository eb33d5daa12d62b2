"""An index opened for reading."""

from __future__ import annotations

import time

import fake_model
import numpy as np
import pytest
from fake_model import vector
from stored_rows import ROWS, assert_holds, write_rows

from grit_jax.errors import GritError
from grit_jax.rag import indexed_documents
from grit_jax.rag.index import Index, IndexOptions, Retrieval, build_index
from grit_jax.rag.store import DocumentStore


def test_another_models_index_is_neither_opened_nor_written(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    other = fake_model.fake_model("w2")
    with pytest.raises(GritError, match="another model.*grit index"):
        Index.open(tmp_path / "index", other)
    with pytest.raises(GritError, match="another model"):
        build_index(other, corpus, tmp_path / "index", quiet=True)
    with pytest.raises(GritError, match="pooling"):
        Index.open(tmp_path / "index", fake_model.fake_model(pooling="cls"))
    assert_holds(Index.open(tmp_path / "index", model), ROWS)


def test_opening_takes_no_longer_for_many_documents(model, tmp_path, monkeypatch):
    """Neither a document nor a record is read by it."""
    rows = [{"id": f"d{i}", "text": f"{i}"} for i in range(1000)]
    build_index(model, write_rows(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    with monkeypatch.context() as patch:
        for owner, name in ((indexed_documents, "indexed_line"), (DocumentStore, "_read")):
            patch.setattr(owner, name, lambda *_, **__: pytest.fail("read"))
        began = time.perf_counter()
        index = Index.open(tmp_path / "index", model)
        assert index.store.size.records == len(index) == 1000
        assert time.perf_counter() - began < 1
    assert index.text(777) == "777"


def test_documents_by_row_and_by_id(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", model)
    assert index.text(3) == index.text("d3") == f"title 3 {ROWS[3]['text']}"
    assert (index.documents[3]["title"], len(index)) == ("title 3", 40)
    for row in (-1, 40):
        with pytest.raises(IndexError):
            index.documents[row]
    with pytest.raises(KeyError):
        index.text("d40")


def test_only_documents_that_fulfil_a_filter_are_found(model, tmp_path):
    """Whatever searches: the first of the whole ranking that do."""
    rows = [{**row, "metadata": {"n": i, "odd": bool(i % 2)}} for i, row in enumerate(ROWS)]
    path = write_rows(tmp_path / "c.jsonl", rows)
    build_index(model, path, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    index = Index.open(tmp_path / "index", model)
    queries, texts = np.stack([vector([1]), vector([2])]), ["text number 7", "title 12"]
    where = "n >= 5 and n < 25 and odd == true or n == 30"
    kept = {*range(5, 25, 2), 30}
    for search in ("dense", "lexical", "hybrid"):
        whole = index.find(texts, queries, 40, Retrieval(search))
        some = index.find(texts, queries, 4, Retrieval(search, where=where))
        for all_hits, hits in zip(whole, some):
            assert set(hits.rows.tolist()) <= kept and len(hits.rows) == 4
            if search != "hybrid":  # whose scores depend on the other candidates
                expected = [row for row in all_hits.rows.tolist() if row in kept][:4]
                assert hits.rows.tolist() == expected
        more = index.find(texts, queries, 40, Retrieval(search, where=where))
        assert search == "lexical" or all(set(hits.rows.tolist()) == kept for hits in more)
        for hits in index.find(texts, queries, 4, Retrieval(search, where="n > 99")):
            assert hits.rows.tolist() == []
    with pytest.raises(GritError, match="index has the metadata 'm'; there are: n, odd"):
        index.find(texts, queries, 4, Retrieval(where="m == 1"))
    for n in range(100):
        assert index.allowed(f"n == {n}").sum() == (n < 40)
    assert len(index._allowed) == 64


def test_without_metadata_there_is_nothing_to_filter(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    with pytest.raises(GritError, match="'n'; no document has any .the key \"metadata\" of corpus"):
        Index.open(tmp_path / "index", model).allowed("n == 1")
