"""Milvus for real, embedded and as a server on the loopback: what the index's files hold, through
updates and kills."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_model
import numpy as np
import pytest
from fake_model import vector

from grit_jax.errors import GritError
from grit_jax.rag import index_files
from grit_jax.rag.index import Index, IndexOptions, Retrieval, SearchSettings, build_index
from grit_jax.rag.index_files import NPY_HEADER, VECTORS, IndexSettings, writing
from grit_jax.rag.manifest import MANIFEST, read_manifest
from grit_jax.rag.search import milvus
from grit_jax.rag.search.milvus import MilvusSearch, choose, fill
from grit_jax.rag.search.milvus_server import EMBEDDED, ROW, VECTOR, MilvusServer

if __name__ != "__main__":
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")

pytestmark = pytest.mark.slow

ROWS = [
    {"id": f"d{i}", "text": f"text number {i // 2 if i < 8 else i}"} for i in range(400)
]  # some are the same


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(model, path: Path, rows, **options):
    corpus = write(path.parent / f"{path.name}.jsonl", rows)
    return build_index(
        model,
        corpus,
        path,
        IndexOptions(kv="none", update=True, delete_missing=True, **options),
        quiet=True,
    )


def changed(rows, every):
    return [
        row | {"text": f"changed {row['id']}"} if i % every == 0 else row
        for i, row in enumerate(rows)
    ]


def assert_finds(index: Index, rows, k=6):
    """What plain NumPy finds, equal scores in the order of the index's rows."""
    texts = {row["id"]: row["text"] for row in rows}
    ids = [index.documents[i]["id"] for i in range(len(index))]
    assert sorted(ids) == sorted(texts) and isinstance(index._search, MilvusSearch)
    vectors = np.stack([vector([256, *texts[id].encode()]) for id in ids]).astype(np.float64)
    queries = vectors[:: max(1, len(ids) // 25)]
    scores = (queries @ vectors.T).astype(np.float32)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = index.search(queries, k)
    np.testing.assert_array_equal(found.rows, best)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, best, 1), rtol=1e-6)


SETTINGS = IndexSettings({}, "mean", "none", 8, default_max_length=64)


def collections(path: Path, uri: str | None = None) -> list[str]:
    with MilvusServer(path, uri) as server:
        return server.call("list_collections")


@pytest.fixture
def server(tmp_path):
    """A Milvus server on the loopback; its URI."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, db, port = start_server_in_thread(str(tmp_path / "server"))
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0).wait()
    db.close()


# ---- an index from its first document to its last ----


def test_added_replaced_deleted_and_copied_to_a_new_generation(model, tmp_path, monkeypatch):
    path, call, sent = tmp_path / "index", MilvusServer.call, []

    def counts(self, name, *args, **kwargs):
        if name in ("upsert", "delete", "drop_collection"):
            sent.append((name, len(kwargs.get("data") or kwargs.get("ids") or ())))
        return call(self, name, *args, **kwargs)

    monkeypatch.setattr(MilvusServer, "call", counts)
    assert build(model, path, ROWS[:300], vectors="milvus").vectors == "milvus"
    assert_finds(Index.open(path, model), ROWS[:300])
    assert_finds(Index.open(path, model), ROWS[:300], k=1000)
    sent.clear()
    build(model, path, ROWS)  # it stays with Milvus
    assert sent == [("upsert", 100)]
    assert_finds(Index.open(path, model), ROWS)
    rows = changed(ROWS, 20)[5:]
    sent.clear()
    assert build(model, path, rows).replaced == 19
    assert sent == [("upsert", 19), ("delete", 24)]
    assert read_manifest(path).deleted == 24 and read_manifest(path).generation == 0
    assert_finds(Index.open(path, model), rows)
    rows = rows[:200]
    build(model, path, rows)
    entry = read_manifest(path).milvus
    assert (entry.generation, entry.rows, entry.deleted) == (1, 200, 0)
    assert_finds(Index.open(path, model), rows)
    assert collections(path) == [f"{entry.name}_1"]  # that of the old files is gone
    build(model, path, rows[:1])
    assert_finds(Index.open(path, model), rows[:1])
    build(model, path, [])  # to the last one, and anew
    index = Index.open(path, model)
    assert index.search(np.eye(8, dtype=np.float32), 3).rows.shape == (8, 0)
    assert index.find(["text"], np.ones((1, 8)), 3, Retrieval("hybrid"))[0].rows.tolist() == []
    index._milvus.close()
    build(model, path, rows[:30])
    assert_finds(Index.open(path, model), rows[:30])


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_only_allowed_rows_are_found(model, tmp_path, monkeypatch, share):
    """By the rows' numbers, or those of the others where they are fewer."""
    path, rng = tmp_path / "index", np.random.default_rng(0)
    rows = [row | {"metadata": {"kept": bool(rng.random() < share)}} for row in ROWS]
    build(model, path, rows, vectors="milvus")
    rows = rows[7:]  # so that numbers in the files and in the index differ
    build(model, path, rows)
    index = Index.open(path, model)
    assert isinstance(index._search, MilvusSearch) and index.manifest.deleted
    allowed = np.array([row["metadata"]["kept"] for row in rows])
    queries = index.vectors[:30].astype(np.float64)
    scores = np.where(allowed, queries @ index.vectors.astype(np.float64).T, -np.inf)
    best = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :6]
    found = index.search(queries, 6, index.allowed("kept == true"))
    np.testing.assert_array_equal(found.rows, best)
    found = index.find([""] * 30, queries, 1000, Retrieval(where="kept == true"))
    assert all(set(hits.rows.tolist()) == set(np.flatnonzero(allowed)) for hits in found)
    assert index.search(queries, 6, np.zeros(len(rows), bool)).rows.shape == (30, 0)
    monkeypatch.setattr(milvus, "MOST_FILTERED", 20)
    with pytest.raises(GritError, match=f"keeps {allowed.sum()} of 393 documents.*at most 20 rows"):
        index.search(queries, 6, allowed)


def test_one_index_changes_to_milvus_and_back_without_encoding(model, tmp_path):
    path = tmp_path / "index"
    build(model, path, ROWS)
    exact = Index.open(path, model).search(np.eye(8, dtype=np.float32), 9)
    model.encoder.encoded.clear()
    assert build(model, path, ROWS, vectors="milvus").encoded == 0 and (path / EMBEDDED).exists()
    index = Index.open(path, model)
    assert_finds(index, ROWS)
    found = index.search(np.eye(8, dtype=np.float32), 9)
    np.testing.assert_array_equal(found.rows, exact.rows)
    np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-6)
    index._milvus.close()
    assert build(model, path, ROWS, vectors="exact").encoded == 0 and not (path / EMBEDDED).exists()
    assert read_manifest(path).milvus is None and not model.encoder.encoded
    np.testing.assert_array_equal(
        Index.open(path, model).search(np.eye(8, dtype=np.float32), 9).rows, exact.rows
    )


def test_many_clustered_vectors(tmp_path):
    """AUTOINDEX does not compare them all; recall at ten after rescoring."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((100, 64))[rng.integers(100, size=20050)] + rng.standard_normal(
        (20050, 64)
    )
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors, queries = vectors[50:], vectors[:50]
    with writing(tmp_path / "index", dataclasses.replace(SETTINGS, dim=64)) as writer:
        choose(writer, "milvus", None)
        writer.append(vectors, [{"id": str(i), "tokens": 1} for i in range(len(vectors))])
        fill(writer, quiet=True)
        search = MilvusSearch(writer.path, writer.manifest, vectors, np.arange(len(vectors)))
        found = search.search(queries, 10)
        search.close()
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :10]
    recall = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), best.tolist())]
    )
    assert recall >= 0.99, recall
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.rows, 1), atol=1e-6)
    with pytest.raises(GritError, match="at most 16384 results"):
        vectors = np.concatenate([vectors] * 4)
        searching = object.__new__(MilvusSearch)
        searching._stored, searching._rows, searching._settings = (
            vectors,
            np.arange(len(vectors)),
            SearchSettings(oversampling=1),
        )
        searching.search(queries, 16385)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_neither_sent_nor_found(model, tmp_path, value):
    """Of an index by an earlier version, which stored them, before and after Milvus has it."""
    path = tmp_path / "index"

    def spoil(number):
        vectors = np.memmap(path / VECTORS, "<f4", "r+", NPY_HEADER, (400, 8))
        vectors[7, 2] = number
        vectors.flush()
        return number

    build(model, path, ROWS)
    good = np.load(path / VECTORS)[7, 2]
    spoil(value)
    with pytest.raises(GritError, match="vectors of documents 'd7' are not finite.*grit index"):
        build(model, path, ROWS, vectors="milvus")
    spoil(good)
    build(model, path, ROWS, vectors="milvus")
    index = Index.open(path, model)
    query = index.vectors[7:8].copy()
    assert 7 in index.search(query, 3).rows
    spoil(value)
    with pytest.raises(GritError, match="vectors of documents 'd7' are not finite.*grit index"):
        index.search(query, 3)


# ---- a server ----


def test_two_indices_in_one_server(model, tmp_path, server, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "user:secret")
    first, second = tmp_path / "first", tmp_path / "second"
    build(model, first, ROWS[:200], vectors="milvus", milvus=server)
    build(model, second, ROWS[100:], vectors="milvus", milvus=server)
    assert_finds(Index.open(first, model), ROWS[:200])
    assert_finds(Index.open(second, model), ROWS[100:])
    assert len(collections(first, server)) == 2 and not (first / EMBEDDED).exists()
    assert "secret" not in (first / MANIFEST).read_text()
    # One is updated, then moved into its folder; the other does not notice.
    rows = changed(ROWS[:200], 10)
    build(model, first, rows)
    assert_finds(Index.open(first, model), rows)
    build(model, first, rows, milvus="embedded")
    assert_finds(Index.open(first, model), rows)
    assert read_manifest(first).milvus.uri is None and (first / EMBEDDED).exists()
    assert collections(first, server) == [f"{read_manifest(second).milvus.name}_0"]
    assert_finds(Index.open(second, model), ROWS[100:])


def test_a_server_that_does_not_answer(model, tmp_path, monkeypatch):
    monkeypatch.setattr("grit_jax.rag.search.milvus_server.SECONDS", 1.0)
    with pytest.raises(GritError, match="http://127.0.0.1:9: Milvus: .*is a Milvus server there"):
        build(model, tmp_path / "index", ROWS, vectors="milvus", milvus="http://127.0.0.1:9")
    assert not model.encoder.encoded  # before anything is encoded


def test_a_writer_changes_a_collection_that_is_open(model, tmp_path, server):
    path = tmp_path / "index"
    build(model, path, ROWS, vectors="milvus", milvus=server)
    opened = Index.open(path, model)
    build(model, path, changed(ROWS, 10))
    with pytest.raises(GritError, match="has changed since the index was opened; open it again"):
        for row in changed(ROWS, 10)[::10]:
            opened.search(vector([256, *row["text"].encode()])[None], 6)
    assert_finds(Index.open(path, model), changed(ROWS, 10))


# ---- what does not fit ----


def tampered(server: MilvusServer, name: str, how: str) -> None:
    first = {ROW: 0, VECTOR: np.ones(8, np.float32)}
    if how == "does not exist":
        server.call("drop_collection", name)
    elif how == "holds 399 vectors, not 400":
        server.call("delete", name, ids=[7])
    elif how == "holds vectors that the index does not have":
        server.call("delete", name, ids=[7])
        server.call("upsert", name, data=[first | {ROW: 400}])
    elif how == "holds the vectors of another index":
        server.call("upsert", name, data=[first])
    else:
        server.call("drop_collection", name)
        server.create(name, 9)


@pytest.mark.parametrize(
    "how",
    [
        "does not exist",
        "holds 399 vectors, not 400",
        "holds vectors that the index does not have",
        "holds the vectors of another index",
        "was not made by grit",
    ],
)
def test_a_collection_that_is_missing_behind_or_anothers(model, tmp_path, how):
    path = tmp_path / "index"
    build(model, path, ROWS, vectors="milvus")
    name = read_manifest(path).milvus.name + "_0"
    with MilvusServer(path, None) as server:
        tampered(server, name, how)
    with pytest.raises(
        GritError, match=f"index: its Milvus collection {name} in .*{how}; run the same grit index"
    ):
        Index.open(path, model)
    if how == "was not made by grit":
        with pytest.raises(GritError, match="rename or remove it"):
            build(model, path, ROWS)
        return
    assert build(model, path, ROWS).encoded == 0
    assert_finds(Index.open(path, model), ROWS)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", ["create", "finish", "call"])
def test_a_writer_that_dies_while_it_fills(model, tmp_path, monkeypatch, step, before):
    """Right before and right after each thing that it asks of Milvus, with documents added,
    replaced and deleted."""
    path, rows = tmp_path / "index", changed(ROWS, 25)[3:]
    build(model, path, ROWS[:300], **({} if step == "create" else {"vectors": "milvus"}))
    done = getattr(MilvusServer, step)

    def dies(self, name, *args, **kwargs):
        if step != "call" or name in ("upsert", "delete"):
            if not before:
                done(self, name, *args, **kwargs)
            raise KeyboardInterrupt
        return done(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusServer, step, dies)
        with pytest.raises(KeyboardInterrupt):
            build(model, path, rows, vectors="milvus")
    model.encoder.encoded.clear()
    with pytest.raises(
        GritError, match="is behind the index's files; run the same grit index again"
    ):
        Index.open(path, model)
    build(model, path, rows)
    assert not model.encoder.encoded
    assert_finds(Index.open(path, model), rows)


def test_fewer_bits_are_for_exact_search(model, tmp_path):
    build(model, tmp_path / "index", ROWS, vectors="milvus")
    for settings in (SearchSettings("int8"), SearchSettings(dim=4)):
        with pytest.raises(GritError, match="fewer bits or dimensions need exact search"):
            Index.open(tmp_path / "index", model, settings)
    index = Index.open(tmp_path / "index", model, SearchSettings(oversampling=8))
    assert_finds(index, ROWS)
    for queries, k in ((np.ones((1, 5)), 1), (np.ones((1, 8)), 0)):
        with pytest.raises(GritError):
            index.search(queries, k)
    assert index.search(np.ones((0, 8)), 3).rows.shape == (0, 3)


# ---- processes ----


class Other:
    """Another process with this index: see `main`."""

    def __init__(self, what: str, path: Path, rows: int):
        command = [sys.executable, __file__, what, str(path), str(rows)]
        helpers = os.pathsep.join([*sys.path, str(Path(fake_model.__file__).parent)])
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": helpers}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self, word: str, times: int = 1) -> bool:
        """Waits until it has said a word so often; False: it has ended before."""
        for line in self.process.stdout:
            times -= line.strip() == word
            if not times:
                return True
        return False

    def end(self, kill: bool = False) -> None:
        if kill:
            self.process.send_signal(signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()


def main(what: str, path: str, rows: str) -> None:
    """`open` holds the index open until standard input ends; `fill` indexes, so many rows at a
    time, telling of each."""
    model = fake_model.fake_model()
    if what == "open":
        index = Index.open(path, model)
        print("ready", flush=True)
        select.select([sys.stdin], [], [])
        index._milvus.close()
        return
    call = MilvusServer.call

    def tells(self, name, *args, **kwargs):
        if name in ("upsert", "delete", "flush"):
            print(name, flush=True)
        return call(self, name, *args, **kwargs)

    MilvusServer.call = tells  # type: ignore[method-assign]
    milvus.BLOCK_BYTES = milvus.DELETED_TOGETHER = int(rows) * 8 * 4
    build_index(
        model,
        f"{path}.jsonl",
        path,
        IndexOptions(kv="none", update=True, delete_missing=True),
        quiet=True,
    )
    print("done", flush=True)


def test_an_embedded_file_that_another_process_has_open(model, tmp_path):
    path = tmp_path / "index"
    build(model, path, ROWS, vectors="milvus")
    other = Other("open", path, 0)
    try:
        assert other.says("ready")
        for use in (
            lambda: Index.open(path, model),
            lambda: build(model, path, ROWS[1:]),
            lambda: build(model, path, ROWS, vectors="exact"),
        ):
            with pytest.raises(GritError, match="milvus.db: another process has it open"):
                use()
    finally:
        other.end()
    build(model, path, ROWS[1:])
    assert_finds(Index.open(path, model), ROWS[1:])


@pytest.mark.parametrize("kills, block", [(6, 16), (6, 100_000)])
def test_killed_in_the_middle_of_an_insert(model, tmp_path, kills, block):
    """Between small inserts and inside a large one: what index.json says to be there is there,
    nothing that it does not know is found, and the next writer makes both agree."""
    path, rng = tmp_path / "index", np.random.default_rng(block)
    rows = [{"id": f"d{i}", "text": f"text number {i}"} for i in range(3000)]
    build(model, path, rows[:1000])
    rows = changed(rows, 9)[30:]  # some of the old ones are replaced or gone
    build(model, path, rows)
    alive = index_files.kept_rows(path, read_manifest(path))
    halves = 0
    while kills:
        collection = read_manifest(path).milvus
        if collection is None or collection.rows == read_manifest(path).rows:
            for vectors in ("exact", "milvus"):
                # As if all had been encoded, and the writer then killed.
                settings = dataclasses.replace(SETTINGS, model=read_manifest(path).model)
                with writing(path, settings) as writer:
                    choose(writer, vectors, None)
        other = Other("fill", path, block)
        assert other.says("upsert", 1 + int(rng.integers(20)) if block == 16 else 1)
        time.sleep(rng.uniform(0, 0.02 if block == 16 else 0.1))
        other.end(kill=True)
        entry = read_manifest(path).milvus
        with MilvusServer(path, None) as server:
            server.call("load_collection", f"{entry.name}_0")
            hits = server.query(f"{entry.name}_0", filter=f"{ROW} >= 0", output_fields=[ROW])
        held = {hit[ROW] for hit in hits}
        assert held <= set(alive.tolist()) and set(alive[alive < entry.rows].tolist()) <= held
        if entry.rows < read_manifest(path).rows:
            kills, halves = kills - 1, halves + (0 < len(held) < len(alive))
            with pytest.raises(
                GritError, match="is behind the index's files; run the same grit index again"
            ):
                Index.open(path, model)
    assert halves or block > 16
    other = Other("fill", path, block)
    assert other.says("done")
    other.end()
    assert_finds(Index.open(path, model), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
