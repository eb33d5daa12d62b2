"""The index: one pass gives vector and record, search is exact, and a kill costs nothing that was
committed."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import fake_model
import jax
import numpy as np
import pytest
from fake_model import document_kv, vector

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import DOCUMENTS, VECTORS
from grit_jax.rag.manifest import MANIFEST
from grit_jax.rag.search.exact import ExactSearch
from grit_jax.sharding import MeshConfig, make_mesh


def write(path: Path, rows) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


ROWS = [
    {"id": f"d{i}", "title": f"title {i}" * (i % 2), "text": f"text number {i} " * (1 + i % 5)}
    for i in range(40)
]


@pytest.fixture
def model():
    return fake_model.fake_model()


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus.jsonl", ROWS)


def content(row) -> str:
    return f"{row['title']} {row['text']}" if row.get("title") else row["text"]


def assert_holds(index: Index, rows):
    """Vector, text and record of every row, each from its own ids."""
    assert len(index) == len(rows)
    ids = [[256, *content(row).encode()] for row in rows]
    keys = [index.documents[i]["key"] for i in range(len(rows))]
    for i, (row, record) in enumerate(zip(rows, index.store.fetch(keys), strict=True)):
        assert index.documents[i]["id"] == row["id"] and index.text(i) == index.text(
            row["id"]
        ) == content(row)
        np.testing.assert_array_equal(index.vectors[i], vector(ids[i]))
        np.testing.assert_array_equal(record.tokens, ids[i])
        np.testing.assert_array_equal(record.k, document_kv(ids[i]).k)
        np.testing.assert_array_equal(record.v, document_kv(ids[i]).v)


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


BAD = [
    {"_id": "empty", "title": "", "text": ""},
    {"_id": "blank", "title": " ", "text": "\n"},
    "{",
    {"id": "d1", "text": "an id that is taken"},
    r'{"id": "\ud800", "text": "half"}',
]


def test_lines_that_are_no_documents_can_be_skipped(model, tmp_path, capsys):
    """And a title alone is a document, as in BEIR's FiQA."""
    title = {"_id": "title", "title": "A title", "text": ""}
    path = write(tmp_path / "c.jsonl", [BAD[0], *ROWS[:3], *BAD[1:], title, *ROWS[3:5]])
    with pytest.raises(GritError, match=r"c\.jsonl:1: the text of the document is empty"):
        build_index(model, path, tmp_path / "index", quiet=True)
    options = IndexOptions(on_error="skip")
    summary = build_index(model, path, tmp_path / "index", options, quiet=True)
    assert (summary.documents, summary.encoded) == (6, 6) and sum(
        summary.lines_skipped.values()
    ) == 5
    assert summary.to_dict()["lines_skipped"]["the text of the document is empty"] == 2
    assert "5 corpus lines skipped" in str(summary)
    assert "c.jsonl: lines skipped: 5 (2 x the text" in capsys.readouterr().err
    index = Index.open(tmp_path / "index", model)
    assert index.text("title") == "A title"
    row = {"id": "title", "title": "A title", "text": ""}
    assert [d["id"] for d in index.documents] == ["d0", "d1", "d2", "title", "d3", "d4"]
    np.testing.assert_array_equal(index.vectors[3], vector([256, *row["title"].encode()]))
    again = build_index(model, path, tmp_path / "index", options, quiet=True)
    assert (again.encoded, again.skipped) == (0, 6)
    path = write(tmp_path / "none.jsonl", BAD[:3])
    with pytest.raises(GritError, match=r"no usable line; the first problem: .*none\.jsonl:1: the"):
        build_index(model, path, tmp_path / "other", options, quiet=True)


def test_the_real_encoder_gives_the_same_vectors_and_records(tiny_model, sentences, tmp_path):
    rows = [
        {"id": str(i), "title": "Lantern", "text": text} for i, text in enumerate(sentences[:6])
    ]
    build_index(tiny_model, write(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    encoded = tiny_model.encode([f"Lantern {text}" for text in sentences[:6]], return_cache=True)
    np.testing.assert_allclose(index.vectors, encoded.vectors, atol=1e-6)
    records = index.store.fetch([index.documents[i]["key"] for i in range(6)])
    for record, cache in zip(records, encoded.caches, strict=True):
        np.testing.assert_allclose(record.k, cache.k, atol=1e-5)
        np.testing.assert_allclose(record.v, cache.v, atol=1e-5)
    assert index.search(encoded.vectors, 1).rows[:, 0].tolist() == list(range(6))


def test_started_again_it_reads_only_what_is_new(model, corpus, tmp_path):
    build_index(model, write(tmp_path / "half.jsonl", ROWS[:15]), tmp_path / "index", quiet=True)
    model.encoder.encoded.clear()
    summary = build_index(model, corpus, tmp_path / "index", quiet=True)
    assert (summary.skipped, summary.encoded, len(model.encoder.encoded)) == (15, 25, 25)
    assert_holds(Index.open(tmp_path / "index", model), ROWS)
    assert build_index(model, corpus, tmp_path / "index", quiet=True).encoded == 0
    assert json.loads((tmp_path / "index" / MANIFEST).read_text())["complete"] is True


def test_equal_documents_share_a_record(model, tmp_path):
    rows = [{"id": str(i), "text": "the same"} for i in range(3)]
    build_index(model, write(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", model)
    assert len(index) == 3 and index.store.size.records == 1


def test_without_caches(model, corpus, tmp_path):
    summary = build_index(model, corpus, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    assert summary.bytes_kv == 0 and not (tmp_path / "index" / "kv").exists()
    index = Index.open(tmp_path / "index", model)
    np.testing.assert_array_equal(index.vectors[0], vector([256, *content(ROWS[0]).encode()]))
    with pytest.raises(GritError, match="kv"):
        build_index(model, corpus, tmp_path / "index", IndexOptions(kv="native"), quiet=True)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"c\.jsonl:2: not valid JSON"),
        ("[1]", r"c\.jsonl:2: expected a JSON object"),
        ('{"text": "a"}', r'c\.jsonl:2: .*"id"'),
        ('{"id": "x"}', r"c\.jsonl:2: the document has no \"text\""),
        ('{"id": "x", "text": ""}', r"c\.jsonl:2: .*empty"),
        ('{"id": "x", "text": 3}', r"c\.jsonl:2: .*string"),
        ('{"id": "x", "title": "T", "text": null}', r"c\.jsonl:2: .*string"),
        (r'{"id": "\ud83d", "text": "a"}', r"c\.jsonl:2: the id holds half of a surrogate pair"),
        (r'{"id": "x", "title": "\udc00", "text": "a"}', r"c\.jsonl:2: the title .* holds half"),
        (r'{"id": "x", "text": "\ud83d"}', r"c\.jsonl:2: the text .* holds half"),
        ('{"id": "x", "title": [], "text": "a", "id2": 0}', None),
        ('{"id": "a", "text": "other"}', r"c\.jsonl:2: .*'a', first used at .*c\.jsonl:1"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_encoded(model, tmp_path, line, message):
    path = write(tmp_path / "c.jsonl", [{"id": "a", "text": "one"}, line])
    if message is None:
        build_index(model, path, tmp_path / "index", quiet=True)
        return
    with pytest.raises(GritError, match=message):
        build_index(model, path, tmp_path / "index", quiet=True)
    assert not model.encoder.encoded and not (tmp_path / "index").exists()


def test_no_corpus(model, tmp_path):
    with pytest.raises(GritError, match="no such file"):
        build_index(model, tmp_path / "c.jsonl", tmp_path / "index")
    (tmp_path / "c.jsonl").write_text("\n\n")
    with pytest.raises(GritError, match="empty"):
        build_index(model, tmp_path / "c.jsonl", tmp_path / "index")


def test_a_document_that_changed_is_not_passed_over(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    changed = write(tmp_path / "changed.jsonl", [ROWS[0], {**ROWS[1], "text": "something else"}])
    with pytest.raises(GritError, match=r"changed\.jsonl:2: document 'd1' has changed"):
        build_index(model, changed, tmp_path / "index", quiet=True)


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


def test_places_that_hold_something_else(model, corpus, tmp_path):
    with pytest.raises(GritError, match="there is no index"):
        Index.open(tmp_path / "nowhere", model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    with pytest.raises(GritError, match="not empty"):
        build_index(model, corpus, tmp_path / "mine", quiet=True)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(GritError, match="cannot be written"):
        build_index(model, corpus, corpus / "index", quiet=True)


def test_one_writer_at_a_time(model, corpus, tmp_path):
    (tmp_path / "index").mkdir()
    with open(tmp_path / "index" / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GritError, match="another grit index"):
            build_index(model, corpus, tmp_path / "index", quiet=True)
    build_index(model, corpus, tmp_path / "index", quiet=True)


def test_damaged_files_are_noticed(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    path = tmp_path / "index"
    whole = (path / DOCUMENTS).read_bytes()
    (path / DOCUMENTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GritError, match="cut short"):
        Index.open(path, model)
    with pytest.raises(GritError, match="damaged"):
        build_index(model, corpus, path, quiet=True)
    (path / DOCUMENTS).write_bytes(whole)
    vectors = (path / VECTORS).read_bytes()
    (path / VECTORS).write_bytes(vectors[:-4])
    with pytest.raises(GritError, match="cannot be read"):
        Index.open(path, model).search(np.ones((1, 8)), 1)
    (path / MANIFEST).write_text("{")
    with pytest.raises(GritError, match="index.json"):
        Index.open(path, model)


# ---- search ----


def numpy_search(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("devices", [None, 1, 8])
@pytest.mark.parametrize("count, k, block", [(1, 5, 16384), (700, 10, 256), (3000, 300, 256)])
def test_search_is_exact(devices, count, k, block):
    rng = np.random.default_rng(count)
    # Small integers: scores are exact in float32, and there are many ties.
    vectors, queries = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (count, 5))
    mesh = (
        None
        if devices is None
        else make_mesh(MeshConfig(data=devices, fsdp=1), jax.devices()[:devices])
    )
    found = ExactSearch(vectors, mesh, block=block).search(queries, k)
    rows, scores = numpy_search(vectors, queries, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.rows.shape == (5, min(k, count))


def test_search_says_what_is_wrong():
    search = ExactSearch(np.ones((3, 4), np.float32))
    assert search.search(np.zeros((0, 4)), 2).rows.shape == (0, 2)
    for queries, k in ((np.ones((1, 5)), 1), (np.ones(4), 1), (np.ones((1, 4)), 0)):
        with pytest.raises(GritError):
            search.search(queries, k)
    with pytest.raises(GritError):
        ExactSearch(np.ones((0, 4), np.float32))
