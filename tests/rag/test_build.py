"""Making an index: one pass gives vector and record, and only what is new is encoded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fake_model import stored_keys, vector
from stored_rows import ROWS, assert_holds, content, write_rows

from grit_jax.errors import GritError
from grit_jax.rag import build
from grit_jax.rag.build import calibrated, delete_documents
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import VECTORS
from grit_jax.rag.manifest import MANIFEST
from grit_jax.rag.quality import RECEIPT, keep_receipt
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.rag.store import StoreSize


def test_vector_text_and_record_of_every_document(model, corpus, tmp_path):
    summary = build_index(
        model, corpus, tmp_path / "index", IndexOptions(batch_tokens=200), quiet=True
    )
    assert_holds(Index.open(tmp_path / "index", model), ROWS)
    np.testing.assert_array_equal(
        np.load(tmp_path / "index" / VECTORS)[3], vector([256, *content(ROWS[3]).encode()])
    )
    tokens = sum(len(content(row).encode()) + 1 for row in ROWS)
    assert (summary.documents, summary.encoded, summary.skipped, summary.tokens) == (
        40,
        40,
        0,
        tokens,
    )
    assert summary.bytes_vectors == 40 * 8 * 4 and len(model.encoder.encoded) == 40
    assert (
        summary.bytes_per_token_per_layer >= 2 * 4 * 4
    )  # K and V, H, float32; headers come on top
    assert "40 documents" in str(summary) and json.dumps(summary.to_dict())


def test_lines_that_are_no_documents_are_counted(model, tmp_path, capsys):
    """And a title alone is a document, as in BEIR's FiQA."""
    title = {"_id": "title", "title": "A title", "text": ""}
    empty = {"_id": "empty", "title": "", "text": ""}
    lines = [empty, *ROWS[:3], {**empty, "_id": "other"}, "{", title, *ROWS[3:5]]
    path = write_rows(tmp_path / "c.jsonl", lines)
    options = IndexOptions(on_error="skip")
    summary = build_index(model, path, tmp_path / "index", options, quiet=True)
    assert (summary.documents, summary.encoded) == (6, 6)
    assert sum(summary.lines_skipped.values()) == 3
    assert summary.to_dict()["lines_skipped"]["the text of the document is empty"] == 2
    assert "3 corpus lines skipped" in str(summary)
    assert "c.jsonl: lines skipped: 3 (2 x the text" in capsys.readouterr().err
    index = Index.open(tmp_path / "index", model)
    assert index.text("title") == "A title"
    assert [d["id"] for d in index.documents] == ["d0", "d1", "d2", "title", "d3", "d4"]
    np.testing.assert_array_equal(index.vectors[3], vector([256, *b"A title"]))
    again = build_index(model, path, tmp_path / "index", options, quiet=True)
    assert (again.encoded, again.skipped) == (0, 6)


def test_a_bad_line_is_named_before_anything_is_encoded(model, tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [ROWS[0], '{"id": "x"}'])
    with pytest.raises(GritError, match=r"c\.jsonl:2: the document has no \"text\""):
        build_index(model, path, tmp_path / "index", quiet=True)
    assert not model.encoder.encoded and not (tmp_path / "index").exists()


def test_the_real_encoder_gives_the_same_vectors_and_records(tiny_model, sentences, tmp_path):
    rows = [
        {"id": str(i), "title": "Lantern", "text": text} for i, text in enumerate(sentences[:6])
    ]
    build_index(tiny_model, write_rows(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    encoded = tiny_model.encode([f"Lantern {text}" for text in sentences[:6]], return_cache=True)
    np.testing.assert_allclose(index.vectors, encoded.vectors, atol=1e-6)
    records = index.store.fetch([index.documents[i]["key"] for i in range(6)])
    for record, cache in zip(records, encoded.caches, strict=True):
        np.testing.assert_allclose(record.k, cache.k, atol=1e-5)
        np.testing.assert_allclose(record.v, cache.v, atol=1e-5)
    assert index.search(encoded.vectors, 1).rows[:, 0].tolist() == list(range(6))


def test_started_again_it_reads_only_what_is_new(model, corpus, tmp_path):
    build_index(
        model, write_rows(tmp_path / "half.jsonl", ROWS[:15]), tmp_path / "index", quiet=True
    )
    model.encoder.encoded.clear()
    summary = build_index(model, corpus, tmp_path / "index", quiet=True)
    assert (summary.skipped, summary.encoded, len(model.encoder.encoded)) == (15, 25, 25)
    assert_holds(Index.open(tmp_path / "index", model), ROWS)
    assert build_index(model, corpus, tmp_path / "index", quiet=True).encoded == 0
    assert json.loads((tmp_path / "index" / MANIFEST).read_text())["complete"] is True


def test_equal_documents_share_a_record(model, tmp_path):
    rows = [{"id": str(i), "text": "the same"} for i in range(3)]
    build_index(model, write_rows(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", model)
    assert len(index) == 3 and index.store.size.records == 1


def test_without_caches(model, corpus, tmp_path):
    summary = build_index(model, corpus, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    assert summary.bytes_kv == 0 and not (tmp_path / "index" / "kv").exists()
    index = Index.open(tmp_path / "index", model)
    np.testing.assert_array_equal(index.vectors[0], vector([256, *content(ROWS[0]).encode()]))
    with pytest.raises(GritError, match="kv"):
        build_index(model, corpus, tmp_path / "index", IndexOptions(kv="native"), quiet=True)


def test_a_document_that_changed_is_not_passed_over(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    changed = write_rows(
        tmp_path / "changed.jsonl", [ROWS[0], {**ROWS[1], "text": "something else"}]
    )
    with pytest.raises(GritError, match=r"changed\.jsonl:2: document 'd1' has changed"):
        build_index(model, changed, tmp_path / "index", quiet=True)


@pytest.mark.parametrize("documents", [5, 1000])
def test_a_codec_is_calibrated_on_documents_from_all_over_the_corpus(model, documents, monkeypatch):
    """As many as hold the tokens that it needs: here 64 of 128 tokens, or all there are."""
    calibration = []
    monkeypatch.setattr(build, "calibrate", lambda kind, sample: calibration.append((kind, sample)))
    calibrated("int8", model, documents, lambda number: f"{number:<127}", 4096)
    [(kind, sample)] = calibration
    numbers = sorted(int(bytes(record.tokens[1:].tolist())) for record in sample)
    assert kind == "int8" and len(set(numbers)) == len(numbers) == min(documents, 64)
    assert sum(len(record.tokens) for record in sample) == len(numbers) * 128
    gaps = np.diff([0, *numbers, documents])
    assert gaps.max() <= 3 * documents / len(numbers)


def test_documents_are_deleted_by_id(model, corpus, tmp_path):
    """As if the index had been made without them; a reader of before keeps what it has."""
    path = tmp_path / "index"
    build_index(model, corpus, path, IndexOptions(batch_tokens=200), quiet=True)
    before = Index.open(path, model)
    encoded = len(model.encoder.encoded)
    ids = {ROWS[3]["id"], ROWS[7]["id"]}
    assert delete_documents(model, path, {*ids, "no such id"}, quiet=True) == 2
    kept = [row for row in ROWS if row["id"] not in ids]
    index = Index.open(path, model)
    assert_holds(index, kept)
    assert index.manifest.complete and len(model.encoder.encoded) == encoded
    assert len(stored_keys(index.store)) == len(kept)
    words = content(ROWS[3])
    [hits] = index.find([words], None, 40, Retrieval("lexical"))
    assert not ids & {index.documents[row]["id"] for row in hits.rows.tolist()}
    assert before.documents[3]["id"] == ROWS[3]["id"]
    assert delete_documents(model, path, ids, quiet=True) == 0
    many = {row["id"] for row in kept[:20]}  # the files are copied without them
    assert delete_documents(model, path, many, quiet=True) == 20
    assert_holds(Index.open(path, model), kept[20:])
    assert delete_documents(model, path, {row["id"] for row in ROWS}, quiet=True) == len(kept) - 20
    assert len(Index.open(path, model)) == 0


def _found(index: Index, where: str = "") -> list[list[int]]:
    """Rows by each search."""
    query = np.ones((1, index.manifest.dim), np.float32)
    retrievals = [Retrieval(search, where=where) for search in ("dense", "lexical", "hybrid")]
    return [index.find(["text 3"], query, 5, each)[0].rows.tolist() for each in retrievals]


@pytest.mark.parametrize("emptied_by", ["deletion", "corpus"])
@pytest.mark.parametrize("kv", ["native", "none"])
def test_an_index_may_lose_all_of_its_documents(model, tmp_path, capsys, kv, emptied_by):
    """It is searched without a result, nothing of the old documents is left, and it takes others
    as a new index does."""
    path = tmp_path / "index"
    old = write_rows(tmp_path / "c.jsonl", ROWS)
    build_index(model, old, path, IndexOptions(kv=kv), quiet=True)
    (path / RECEIPT).write_text("{}")
    empty, options = write_rows(tmp_path / "empty.jsonl", []), IndexOptions(kv=kv, update=True)
    with pytest.raises(GritError, match=r"empty\.jsonl: empty"):  # unless it is asked for
        build_index(model, empty, path, options, quiet=True)
    with pytest.raises(GritError, match=r"empty\.jsonl: empty"):
        deleting = dataclasses.replace(options, delete_missing=True)
        build_index(model, empty, tmp_path / "new", deleting, quiet=True)
    assert len(Index.open(path, model)) == len(ROWS)
    for _ in range(2):  # the second time there is nothing to do
        if emptied_by == "deletion":
            delete_documents(model, path, {row["id"] for row in ROWS}, quiet=True)
        else:
            summary = build_index(model, empty, path, deleting, quiet=True)
            assert (summary.documents, summary.bytes_vectors, summary.bytes_lexical) == (0, 0, 0)
        index = Index.open(path, model)
        assert index.manifest.complete and _found(index) == _found(index, "year > 1") == [[]] * 3
    assert (len(index), index.vectors.shape) == (0, (0, index.manifest.dim))
    assert not (path / RECEIPT).exists() and keep_receipt(model, index) == (None, False)
    if kv != "none":
        assert index.store.size == StoreSize()
    with pytest.raises(GritError, match="there is no document 'd1'"):
        index.row_of("d1")
    capsys.readouterr()
    new = [{"id": f"n{i}", "text": f"new text {i}"} for i in range(3)]
    build_index(model, write_rows(tmp_path / "n.jsonl", new), path, IndexOptions(kv=kv), quiet=True)
    assert "not in" not in capsys.readouterr().err
    again = Index.open(path, model)
    assert [line["id"] for line in again.documents] == ["n0", "n1", "n2"]
    if kv != "none":
        assert_holds(again, new)
    assert [sorted(rows) for rows in _found(again)] == [[0, 1, 2]] * 3


def test_a_writer_killed_while_it_empties_an_index(model, corpus, tmp_path, monkeypatch, capsys):
    """The deletion is committed; what is left opens, and the next writer finishes it."""
    path = tmp_path / "index"
    build_index(model, corpus, path, IndexOptions(), quiet=True)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(build, "_free_space", killed)
        delete_documents(model, path, {row["id"] for row in ROWS}, quiet=True)
    assert _found(Index.open(path, model)) == [[]] * 3
    assert "this index is not finished (0 documents so far)" in capsys.readouterr().err
    build_index(model, corpus, path, IndexOptions(), quiet=True)
    assert_holds(Index.open(path, model), ROWS)


def test_a_corpus_that_is_a_part_of_the_index_is_added_silently(model, corpus, tmp_path, capsys):
    path = tmp_path / "index"
    build_index(model, corpus, path, IndexOptions(), quiet=True)
    more = write_rows(tmp_path / "more.jsonl", [{"id": "new", "text": "a new one"}])
    options = IndexOptions(update=True, delete_missing=None)
    summary = build_index(model, more, path, options, quiet=True)
    assert (summary.documents, summary.encoded) == (41, 1)
    assert "are not in" not in capsys.readouterr().err
