"""An index opened for reading."""

from __future__ import annotations

import time

import fake_model
import pytest
from stored_rows import ROWS, assert_holds, write_rows

from grit_jax.errors import GritError
from grit_jax.rag import index_files
from grit_jax.rag.index import Index, build_index
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
        for owner, name in ((index_files, "indexed_line"), (DocumentStore, "_read")):
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
