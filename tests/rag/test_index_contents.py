"""What has changed in a corpus since it was indexed: documents of which the metadata alone differ."""

from __future__ import annotations

import pytest
from stored_rows import ROWS, assert_holds, write_rows

from grit_jax.errors import GritError
from grit_jax.rag import index_contents
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import IndexWriter

UPDATE = IndexOptions(update=True, batch_tokens=200)


@pytest.fixture
def index(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", IndexOptions(batch_tokens=200), quiet=True)
    return tmp_path / "index"


def with_metadata(rows, which, value):
    return [{**r, "metadata": {"v": value}} if i in which else r for i, r in enumerate(rows)]


def assert_metadata(index: Index, rows) -> None:
    """Of every document, whatever its number; and all else as before."""
    by_id = {row["id"]: row.get("metadata") or {} for row in rows}
    ids = [index.documents[i]["id"] for i in range(len(index))]
    assert index.documents.metadata() == [by_id[id] for id in ids]
    order = {id: i for i, id in enumerate(ids)}
    assert_holds(index, sorted(rows, key=lambda row: order[row["id"]]))


def test_a_row_of_its_own_without_encoding(model, index, tmp_path, monkeypatch):
    monkeypatch.setattr(index_contents, "ROWS_TOGETHER", 2)
    rows = with_metadata(ROWS, {2, 3, 9, 39}, "new")
    rows[9] = {**rows[9], "text": "and other words"}
    path = write_rows(tmp_path / "c.jsonl", rows)
    with pytest.raises(GritError, match="c.jsonl:3: document 'd2' has changed since.*--update"):
        build_index(model, path, index, quiet=True)
    model.encoder.encoded.clear()
    summary = build_index(model, path, index, UPDATE, quiet=True)
    assert len(model.encoder.encoded) == 1  # d9
    assert (summary.documents, summary.encoded, summary.replaced) == (40, 1, 4)
    assert_metadata(Index.open(index, model), rows)
    rows = with_metadata(rows, {3}, "newer")
    rows[2] = ROWS[2]  # none any more
    summary = build_index(model, write_rows(path, rows), index, UPDATE, quiet=True)
    assert (summary.encoded, summary.replaced, summary.skipped) == (0, 2, 40)
    assert_metadata(Index.open(index, model), rows)
    assert build_index(model, path, index, quiet=True).replaced == 0


@pytest.mark.parametrize("commits", [1, 2])
def test_a_writer_that_dies_between(model, index, tmp_path, monkeypatch, commits):
    monkeypatch.setattr(index_contents, "ROWS_TOGETHER", 2)
    rows = with_metadata(ROWS, range(6), "new")
    path = write_rows(tmp_path / "c.jsonl", rows)
    append, calls = IndexWriter.append, []

    class Killed(BaseException):
        pass

    def dies(self, *arguments):
        if len(calls) == commits:
            raise Killed
        calls.append(1)
        append(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(IndexWriter, "append", dies)
        with pytest.raises(Killed):
            build_index(model, path, index, UPDATE, quiet=True)
    done = set(range(2 * commits))
    assert_metadata(Index.open(index, model), with_metadata(ROWS, done, "new"))
    assert build_index(model, path, index, UPDATE, quiet=True).replaced == 6 - len(done)
    assert_metadata(Index.open(index, model), rows)


def test_documents_that_were_cut_stay_so(model, corpus, tmp_path):
    options = IndexOptions(max_length=20, update=True)
    cut = build_index(model, corpus, tmp_path / "index", options, quiet=True).documents_truncated
    path = write_rows(tmp_path / "c.jsonl", with_metadata(ROWS, range(40), 1))
    summary = build_index(model, path, tmp_path / "index", options, quiet=True)
    assert summary.documents_truncated == cut > 0
    assert build_index(model, path, tmp_path / "index", quiet=True).documents_truncated == cut
