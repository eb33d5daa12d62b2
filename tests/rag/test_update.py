"""Keeping an index up to date: documents replaced and deleted in place, and nothing half done after
a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import fake_model
import numpy as np
import pytest
from fake_model import document_kv, stored_keys, vector

from grit_jax.data.bm25 import BM25
from grit_jax.errors import GritError
from grit_jax.rag import build
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import IndexWriter
from grit_jax.rag.manifest import MANIFEST
from grit_jax.rag.store import DocumentStore

ROWS = [{"id": f"d{i}", "text": f"text number {i} " * (1 + i % 5)} for i in range(40)]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(rows, which, what="rewritten"):
    return [{**row, "text": f"{what} {i}"} if i in which else row for i, row in enumerate(rows)]


@pytest.fixture
def index(model, tmp_path):
    build_index(
        model,
        write(tmp_path / "c.jsonl", ROWS),
        tmp_path / "index",
        IndexOptions(batch_tokens=200),
        quiet=True,
    )
    return tmp_path / "index"


def assert_holds(index: Index, rows):
    """Vector, text and record of every document, each from its own ids, and no other record."""
    assert {index.documents[i]["id"] for i in range(len(index))} == {
        row["id"] for row in rows
    } and len(index) == len(rows)
    by_id = {index.documents[i]["id"]: i for i in range(len(index))}
    ids = [[256, *row["text"].encode()] for row in rows]
    lines = [index.documents[by_id[row["id"]]] for row in rows]
    for row, line, tokens, record in zip(
        rows, lines, ids, index.store.fetch([line["key"] for line in lines])
    ):
        assert index.text(row["id"]) == row["text"] and line["tokens"] == len(tokens)
        np.testing.assert_array_equal(index.vectors[by_id[row["id"]]], vector(tokens))
        np.testing.assert_array_equal(record.k, document_kv(tokens).k)
        assert index.text(int(index.search(vector(tokens)[None], 1).rows[0, 0])) == row["text"]
    words = BM25([row["text"] for row in rows])
    numbers = [by_id[row["id"]] for row in rows]
    for query in ("text number 7", "rewritten 3"):  # built in memory where a writer was killed
        np.testing.assert_array_equal(index.lexical.scores(query)[numbers], words.scores(query))
    assert stored_keys(index.store) == {line["key"] for line in lines}
    assert index.store.size.records == len({line["key"] for line in lines})
    assert index.manifest.tokens == sum(map(len, ids))


def test_changed_documents_are_replaced_and_new_ones_added(model, index, tmp_path):
    rows = [*changed(ROWS, {3, 17}), {"id": "new", "text": "another one"}]
    model.encoder.encoded.clear()
    summary = build_index(
        model, write(tmp_path / "c.jsonl", rows), index, IndexOptions(update=True), quiet=True
    )
    assert (summary.documents, summary.encoded, summary.skipped, summary.replaced) == (41, 3, 38, 2)
    assert len(model.encoder.encoded) == 3 and summary.deleted == 0
    assert_holds(Index.open(index, model), rows)
    assert build_index(model, tmp_path / "c.jsonl", index, quiet=True).encoded == 0


def test_documents_that_are_gone_stay_unless_told(model, index, tmp_path, capsys):
    rows = ROWS[:30]
    build_index(model, write(tmp_path / "c.jsonl", rows), index, quiet=True)
    assert "10 documents of the index are not in" in capsys.readouterr().err
    assert_holds(Index.open(index, model), ROWS)
    summary = build_index(
        model, tmp_path / "c.jsonl", index, IndexOptions(delete_missing=True), quiet=True
    )
    assert (summary.documents, summary.deleted, summary.encoded) == (30, 10, 0)
    assert_holds(Index.open(index, model), rows)
    # Deleted is not remembered: it can come back.
    build_index(model, write(tmp_path / "c.jsonl", ROWS), index, quiet=True)
    assert_holds(Index.open(index, model), ROWS)


def test_without_update_a_change_is_refused_and_nothing_is_written(model, index, tmp_path):
    before = (index / MANIFEST).read_text()
    with pytest.raises(GritError, match=r"c\.jsonl:6: document 'd5' has changed.*--update"):
        build_index(
            model,
            write(tmp_path / "c.jsonl", changed(ROWS, {5})),
            index,
            IndexOptions(delete_missing=True),
            quiet=True,
        )
    assert (index / MANIFEST).read_text() == before


def test_a_record_that_others_share_is_kept(model, tmp_path):
    rows = [{"id": str(i), "text": "the same"} for i in range(8)]
    build_index(model, write(tmp_path / "c.jsonl", rows), tmp_path / "index", quiet=True)
    rows[0] = {"id": "0", "text": "not the same"}
    build_index(
        model,
        write(tmp_path / "c.jsonl", rows),
        tmp_path / "index",
        IndexOptions(update=True),
        quiet=True,
    )
    assert_holds(Index.open(tmp_path / "index", model), rows)


def test_much_dead_is_copied_away_and_its_bytes_come_free(model, index, tmp_path):
    opened = Index.open(index, model)
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    rows = changed(ROWS[:20], {0, 1})
    build_index(
        model,
        write(tmp_path / "c.jsonl", rows),
        index,
        IndexOptions(update=True, delete_missing=True),
        quiet=True,
    )
    assert_holds(Index.open(index, model), rows)
    assert sorted(path.name for path in index.iterdir() if path.name != ".lock") == [
        "deleted.1.bin",
        "documents.1.jsonl",
        "index.json",
        "kv.1",
        "lexical.1",
        "vectors.1.npy",
    ]
    assert sum(file.stat().st_size for file in index.rglob("*") if file.is_file()) < 0.6 * size
    np.testing.assert_array_equal(
        np.load(index / "vectors.1.npy"), Index.open(index, model).vectors
    )
    # Who had it open still reads texts and vectors; records are computed anew by who asks for them.
    assert opened.text("d30") == ROWS[30]["text"] and opened.search(
        vector([256, 1])[None], 3
    ).rows.shape == (1, 3)
    # And it goes on from there.
    build_index(
        model, write(tmp_path / "c.jsonl", ROWS), index, IndexOptions(update=True), quiet=True
    )
    assert_holds(Index.open(index, model), ROWS)


def test_a_store_elsewhere_is_of_one_index_and_nothing_else_there_is_touched(
    model, index, tmp_path
):
    records = tmp_path / "records"
    records.mkdir()
    (records / "notes.txt").write_text("mine")
    build_index(
        model,
        tmp_path / "c.jsonl",
        tmp_path / "first",
        IndexOptions(store=str(records)),
        quiet=True,
    )
    with pytest.raises(
        GritError,
        match="records: this document store belongs to another index; choose another --store",
    ):
        build_index(
            model,
            tmp_path / "c.jsonl",
            tmp_path / "second",
            IndexOptions(store=str(records)),
            quiet=True,
        )
    build_index(
        model,
        write(tmp_path / "c.jsonl", ROWS[:9]),
        tmp_path / "first",
        IndexOptions(delete_missing=True),
        quiet=True,
    )
    assert_holds(Index.open(tmp_path / "first", model), ROWS[:9])
    assert [path.name for path in records.iterdir()] == ["notes.txt"] and (
        tmp_path / "records.1"
    ).exists()


def test_an_index_with_everything_deleted_can_be_filled_again(model, index, tmp_path):
    other = [{"id": "x", "text": "only one"}]
    build_index(
        model,
        write(tmp_path / "c.jsonl", other),
        index,
        IndexOptions(delete_missing=True),
        quiet=True,
    )
    assert_holds(Index.open(index, model), other)
    build_index(
        model,
        write(tmp_path / "c.jsonl", ROWS),
        index,
        IndexOptions(delete_missing=True),
        quiet=True,
    )
    assert_holds(Index.open(index, model), ROWS)


@pytest.mark.parametrize(
    "owner, name",
    [
        (IndexWriter, "next_generation"),
        (DocumentStore, "delete_many"),
        (DocumentStore, "copy_to"),
        (build, "remove_store"),
        (IndexWriter, "_remove"),
        (IndexWriter, "append"),
        (DocumentStore, "put_encoded"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_writer_that_dies_anywhere_leaves_an_index_and_the_next_one_finishes(
    model, index, tmp_path, monkeypatch, owner, name, before
):
    """Death right before and right after each step that changes files."""
    rows = changed(ROWS[:24], {0, 5, 6})
    write(tmp_path / "c.jsonl", rows)
    step = getattr(owner, name)

    def dies(*args, **kwargs):
        if not before:
            step(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(KeyboardInterrupt):
            build_index(
                model,
                tmp_path / "c.jsonl",
                index,
                IndexOptions(update=True, delete_missing=True),
                quiet=True,
            )
    half = Index.open(index, model)
    texts = {row["id"]: {row["text"]} for row in ROWS}
    for row in rows:
        texts[row["id"]].add(row["text"])
    ids = [half.documents[i]["id"] for i in range(len(half))]
    assert len(set(ids)) == len(ids) and set(ids) >= {row["id"] for row in rows}
    records = half.store.fetch([half.documents[i]["key"] for i in range(len(half))])
    for i, record in enumerate(records):
        text = half.text(i)
        assert text in texts[ids[i]]
        tokens = [256, *text.encode()]
        np.testing.assert_array_equal(half.vectors[i], vector(tokens))
        np.testing.assert_array_equal(record.v, document_kv(tokens).v)
    build_index(
        model,
        tmp_path / "c.jsonl",
        index,
        IndexOptions(update=True, delete_missing=True),
        quiet=True,
    )
    finished = Index.open(index, model)
    assert_holds(finished, rows)
    leftover = {path.name for path in index.iterdir()} - {MANIFEST, ".lock"}
    generation = finished.manifest.generation
    assert all((f".{generation}" in name) == bool(generation) for name in leftover)


def state(path: Path, model) -> dict[str, str]:
    """Texts by id, once it is sure that each has its own vector and record and is searched by its
    words."""
    try:
        index = Index.open(path, model)
    except GritError as error:
        assert "no document in this index yet" in str(error) or "there is no index" in str(error)
        return {}
    lines = [index.documents[i] for i in range(len(index))]
    records = index.store.fetch([line["key"] for line in lines])
    native = index.store.codec is None
    for i, (line, record) in enumerate(zip(lines, records, strict=True)):
        tokens = [256, *line["text"].encode()]
        np.testing.assert_array_equal(index.vectors[i], vector(tokens))
        np.testing.assert_array_equal(record.tokens, tokens)
        expected = (
            document_kv(tokens)
            if native
            else fake_model.packed(document_kv(tokens), index.store.codec)
        )
        np.testing.assert_array_equal(
            *((a.v if native else a.arrays["v"]) for a in (record, expected))
        )
    words = BM25([line["text"] for line in lines])
    for query in ("killed document 7", "new 3", "same text"):
        np.testing.assert_array_equal(index.lexical.scores(query), words.scores(query))
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line["text"] for line in lines}


@pytest.mark.parametrize(
    "kv, kills",
    [
        ("native", 4),
        pytest.param("native", 100, marks=pytest.mark.slow),
        pytest.param("int4", 20, marks=pytest.mark.slow),
    ],
)
def test_writers_killed_at_any_moment_lose_nothing(tmp_path, kv, kills):
    """From nothing to one corpus, to another and back, each writer killed at a random moment of its
    work."""
    first = [{"id": f"k{i}", "text": f"killed document {i} " * (1 + i % 3)} for i in range(60)]
    second = [
        *changed(first, set(range(0, 60, 2)))[10:],
        *({"id": f"n{i}", "text": f"new {i}"} for i in range(20)),
    ]
    turns = [
        (write(tmp_path / name, rows), {row["id"]: row["text"] for row in rows})
        for name, rows in (("first", first), ("second", second))
    ]
    model, path, rng = fake_model.fake_model(), tmp_path / "index", np.random.default_rng(0)
    done, turn, before = 0, 0, {}
    with fake_model.Writers() as writers:
        writers.start(turns[0][0], tmp_path / "undisturbed", kv)
        began = time.perf_counter()
        assert writers.end() == (set(turns[0][1]), True)
        whole = time.perf_counter() - began
        while done < kills:
            corpus, wanted = turns[turn % 2]
            writer = writers.start(corpus, path, kv)
            time.sleep(rng.uniform(0, whole))
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer, signal.SIGKILL)
            acknowledged, finished = writers.end()
            done, turn = done + (not finished), turn + finished
            whole *= 0.9 if finished else 1.02  # writers that are killed at work are what is wanted
            after = state(path, model)
            # Of each document the old text or the new one, of those acknowledged the new one.
            for id in {*before, *after, *wanted}:
                assert after.get(id) in (before.get(id), wanted.get(id)), (
                    id,
                    before.get(id),
                    after.get(id),
                )
            assert all(id in after for id in before if id in wanted)
            assert all(after[id] == wanted[id] for id in acknowledged)
            assert after == wanted or not finished
            assert (
                after in ({}, before, wanted)
                or not json.loads((path / MANIFEST).read_text())["complete"]
            )
            before = after
    build_index(
        model, turns[0][0], path, IndexOptions(kv=kv, update=True, delete_missing=True), quiet=True
    )
    assert state(path, model) == turns[0][1]


@pytest.mark.parametrize("kv", ["native", "int8"])
def test_updates_over_equal_texts_end_as_an_index_made_from_scratch(model, tmp_path, kv):
    """Texts that several documents share come, go and change hands; records are counted once."""
    versions = [
        [("a", "same"), ("b", "same"), ("c", "other"), ("d", "same")],
        [("a", "other"), ("b", "same"), ("e", "same"), ("f", "new")],
        [("f", "same"), ("a", "same"), ("g", "new"), ("h", "new")],
    ]
    path, options = tmp_path / "index", IndexOptions(kv=kv, update=True, delete_missing=True)
    for number, version in enumerate(versions):
        rows = [{"id": id, "text": f"{text} text"} for id, text in version]
        build_index(model, write(tmp_path / "c.jsonl", rows), path, options, quiet=True)
        build_index(model, tmp_path / "c.jsonl", tmp_path / str(number), options, quiet=True)
        updated, fresh = Index.open(path, model), Index.open(tmp_path / str(number), model)
        assert state(path, model) == state(tmp_path / str(number), model)
        assert (
            updated.store.size.records
            == fresh.store.size.records
            == len({text for _, text in version})
        )
        assert updated.manifest.tokens == fresh.manifest.tokens
        order = {updated.documents[i]["id"]: i for i in range(len(updated))}
        rows_of = [order[fresh.documents[i]["id"]] for i in range(len(fresh))]
        np.testing.assert_array_equal(updated.vectors[rows_of], fresh.vectors)
