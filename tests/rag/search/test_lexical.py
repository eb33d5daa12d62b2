"""The BM25 index beside the vectors: it holds the documents of the index, whatever happened to it."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from stored_rows import ROWS, content, write_rows

from grit_jax.data.bm25 import BM25
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import IndexWriter
from grit_jax.rag.manifest import read_manifest, write_manifest
from grit_jax.rag.search import lexical
from grit_jax.rag.search.hybrid import Retrieval

WORDS = Retrieval("lexical")


@pytest.fixture
def index(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", IndexOptions(batch_tokens=200), quiet=True)
    return tmp_path / "index"


def folders(index):
    return sorted(path.name for path in index.glob("*lexical*"))


def assert_searches(index: Index, rows) -> None:
    """BM25 of each row, at its document."""
    expected = BM25([content(row) for row in rows])
    ids = [row["id"] for row in rows]
    numbers = [ids.index(index.documents[i]["id"]) for i in range(len(index))]
    for query in ("title 7", "text number 12", "rewritten", "whale"):
        np.testing.assert_allclose(index.lexical.scores(query), expected.scores(query)[numbers])


def test_it_is_kept_beside_the_vectors(model, index, capsys):
    assert folders(index) == ["lexical.0"]
    opened = Index.open(index, model)
    assert_searches(opened, ROWS)
    [hits] = opened.find(["title number 7"], None, 3, WORDS)
    assert opened.documents[int(hits.rows[0])]["id"] == "d7" and len(hits.rows) == 3
    assert opened.find(["whale"], None, 3, WORDS)[0].rows.tolist() == []
    assert "lexical" not in capsys.readouterr().err


def test_it_follows_replaced_new_and_deleted_documents(model, index, tmp_path, capsys):
    rows = [{**r, "text": "rewritten words"} if i == 3 else r for i, r in enumerate(ROWS[:20])]
    rows.append({"id": "new", "text": "rewritten whale"})
    options = IndexOptions(update=True, delete_missing=True)
    summary = build_index(model, write_rows(tmp_path / "c.jsonl", rows), index, options, quiet=True)
    assert_searches(Index.open(index, model), rows)
    assert folders(index) == ["lexical.1"]
    assert summary.bytes_lexical == sum(f.stat().st_size for f in (index / "lexical.1").iterdir())
    before = {f.name: f.stat().st_mtime_ns for f in (index / "lexical.1").iterdir()}
    build_index(model, tmp_path / "c.jsonl", index, options, quiet=True)  # nothing to do
    assert {f.name: f.stat().st_mtime_ns for f in (index / "lexical.1").iterdir()} == before
    assert "lexical" not in capsys.readouterr().err


def damage(index, how):
    manifest = read_manifest(index)
    if how == "of an earlier version":
        write_manifest(index, dataclasses.replace(manifest, lexical=None))
        shutil.rmtree(index / "lexical.0")
    elif how == "other words":
        files = dataclasses.replace(manifest.lexical, words=0)
        write_manifest(index, dataclasses.replace(manifest, lexical=files))
    elif how == "removed":
        shutil.rmtree(index / "lexical.0")
    elif how == "cut":
        path = index / "lexical.0" / "data.csc.index.npy"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        shutil.rmtree(index / "lexical.0")
        BM25(["other", "documents"]).save(index / "lexical.0")


@pytest.mark.parametrize(
    "how", ["of an earlier version", "other words", "removed", "cut", "another index's"]
)
def test_one_that_cannot_be_used_is_built(model, index, corpus, capsys, how):
    damage(index, how)
    assert_searches(Index.open(index, model), ROWS)
    warning = capsys.readouterr().err
    assert "building it in memory for this run (the same grit index again keeps it" in warning
    build_index(model, corpus, index, quiet=True)
    assert_searches(Index.open(index, model), ROWS)
    assert capsys.readouterr().err == "" and len(folders(index)) == 1


@pytest.mark.parametrize("point", ["before", "in it", "committing", "removing"])
def test_a_writer_that_dies_loses_no_document(model, index, tmp_path, monkeypatch, capsys, point):
    """The documents are committed before; a search by words has them from then on."""
    rows = [*ROWS[5:], {"id": "new", "text": "rewritten whale"}]
    options = IndexOptions(update=True, delete_missing=True)
    write_rows(tmp_path / "c.jsonl", rows)

    class Killed(BaseException):
        pass

    def die(*arguments, **keywords):
        raise Killed

    def dies_at_lexical(self, commit=IndexWriter.commit, **changes):
        die() if "lexical" in changes else commit(self, **changes)

    target, name, replacement = {
        "before": (lexical, "update", die),
        "in it": (lexical, "_flush", die),
        "committing": (IndexWriter, "commit", dies_at_lexical),
        "removing": (lexical, "_remove", die),
    }[point]
    with monkeypatch.context() as patched:
        patched.setattr(target, name, replacement)
        if point == "in it":  # as after a kill: nothing is cleaned up
            patched.setattr("grit_jax.runtime.files.shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            build_index(model, tmp_path / "c.jsonl", index, options, quiet=True)
    opened = Index.open(index, model)
    assert_searches(opened, rows)
    warned = "its lexical index does not cover all documents" in capsys.readouterr().err
    assert warned == (point != "removing")
    build_index(model, tmp_path / "c.jsonl", index, options, quiet=True)
    assert_searches(opened, rows)  # one that was open before
    assert_searches(Index.open(index, model), rows)
    assert len(folders(index)) == 1 and "lexical" not in capsys.readouterr().err


def test_an_index_that_is_emptied_and_filled_again(model, index, tmp_path):
    one = write_rows(tmp_path / "one.jsonl", [{"id": "new", "text": "whale"}])
    build_index(model, one, index, IndexOptions(delete_missing=True), quiet=True)
    assert_searches(Index.open(index, model), [{"id": "new", "text": "whale"}])


def test_a_folder_outside_the_index_is_refused(model, index):
    manifest = read_manifest(index)
    files = dataclasses.replace(manifest.lexical, folder="../elsewhere")
    write_manifest(index, dataclasses.replace(manifest, lexical=files))
    with pytest.raises(Exception, match="is not the manifest of an index"):
        Index.open(index, model)
