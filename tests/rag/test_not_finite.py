"""Vectors and caches that hold NaN or infinity: never stored, never searched."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import fake_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, SearchSettings, build_index
from grit_jax.rag.index_files import NPY_HEADER, VECTORS
from grit_jax.rag.manifest import MilvusCollection, read_manifest
from grit_jax.rag.search.exact import ExactSearch, NonFiniteRows
from grit_jax.rag.search.milvus import MilvusSearch, _send
from grit_jax.rag.search.milvus_server import ROW, VECTOR
from grit_jax.sharding import MeshConfig, make_mesh

ROWS = [{"id": f"d{i}", "text": f"text number {i}"} for i in range(40)]
SETTINGS = (
    SearchSettings(),
    SearchSettings("bfloat16"),
    SearchSettings("int8"),
    SearchSettings(dim=4),
)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kv", ["native", "int8", "none"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_document_that_is_not_finite_is_refused_by_its_id(tiny_model, tmp_path, kv, value):
    """The documents committed before it stay."""
    rows = [*ROWS[:27], {"id": "d27", "text": "a text with a zebra"}, *ROWS[28:]]
    corpus = write(tmp_path / "c.jsonl", rows)
    encode = tiny_model.tokenizer.encode
    usual = {i for row in ROWS for i in encode(row["text"])}
    [token, *_] = [i for i in encode("a text with a zebra") if i not in usual]
    params = dict(tiny_model.params)
    params["embed"] = jnp.asarray(params["embed"]).at[token].set(value)
    broken = type(tiny_model)(tiny_model.config, params, tiny_model.tokenizer, tiny_model.chat)
    options = IndexOptions(kv=kv, batch_tokens=1)
    # A codec is calibrated on documents from all over the corpus, before the first is indexed.
    name = r"document \d+ of the corpus" if kv == "int8" else r"c\.jsonl:28: document 'd27'"
    with pytest.raises(GritError, match=f"{name}.* not finite.*'embed'"):
        build_index(broken, corpus, tmp_path / "index", options, quiet=True)
    manifest = read_manifest(tmp_path / "index")
    assert manifest.documents == (0 if kv == "int8" else 27) and not manifest.complete


@pytest.fixture
def spoiled(tmp_path):
    """An index of an earlier version that stored vectors which are not finite, one of a deleted
    row."""
    model = fake_model.fake_model()
    options = IndexOptions(kv="none", update=True, delete_missing=True)
    path = tmp_path / "index"
    build_index(model, write(tmp_path / "c.jsonl", ROWS), path, options, quiet=True)
    build_index(model, write(tmp_path / "c.jsonl", ROWS[1:]), path, options, quiet=True)

    def spoil(row: int, value: float):
        vectors = np.memmap(path / VECTORS, "<f4", "r+", NPY_HEADER, (40, 8))
        vectors[row, 2] = value
        vectors.flush()
        return Index, model, path

    return spoil


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_stored_vectors_that_are_not_finite_are_refused_by_document(spoiled, settings, value):
    _, model, path = spoiled(0, value)  # of the deleted document, which is never searched
    queries = np.eye(8, dtype=np.float32)
    assert Index.open(path, model, settings).search(queries, 3).rows.shape == (8, 3)
    spoiled(31, value)
    spoiled(7, value)
    index = Index.open(path, model, settings)
    with pytest.raises(
        GritError, match="vectors of documents 'd7', 'd31' are not finite.*grit index"
    ):
        index.search(queries, 3)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("devices", [None, 8])
def test_exact_search_refuses_rows_and_queries_that_are_not_finite(settings, devices):
    mesh = (
        None if devices is None else make_mesh(MeshConfig(data=8, fsdp=1), jax.devices()[:devices])
    )
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2100, 8)).astype(np.float32)
    search = ExactSearch(vectors, mesh, block=256, settings=settings)
    queries = vectors[:3].copy()
    queries[1, 5] = np.nan
    with pytest.raises(GritError, match="query vector 1 is not finite"):
        search.search(queries, 2)
    vectors[[3, 1900], 1] = np.inf, np.nan
    with pytest.raises(NonFiniteRows) as raised:
        ExactSearch(vectors, mesh, block=256, settings=settings)
    assert set(raised.value.rows) <= {3, 1900}


@pytest.mark.parametrize("settings", SETTINGS)
def test_scores_that_overflow_rank_rows_and_never_padding(settings):
    """3e38 is finite, its products are not: every result is a row, whatever its score."""
    vectors = np.full((5, 8), 3e38, np.float32)
    vectors[1, ::2] = -3e38  # the sum of its products is inf - inf
    vectors[4] = -3e38
    found = ExactSearch(vectors, settings=settings).search(vectors[:1], 5)
    assert sorted(found.rows[0].tolist()) == [0, 1, 2, 3, 4] and found.rows[0, -1] == 4
    assert not np.isnan(found.scores).any()


class MilvusThatKeepsVectors:
    """What `MilvusSearch` and `fill` ask of a server: `upsert` and `search`, by inner product with
    NaN first, as an engine may have it."""

    def __init__(self):
        self.rows = {}

    def call(self, method, name, *, data, limit=0, **_):
        if method == "upsert":
            self.rows.update((row[ROW], row[VECTOR]) for row in data)
            return None
        numbers, vectors = list(self.rows), np.stack(list(self.rows.values()))
        order = np.argsort(-np.nan_to_num(data @ vectors.T, nan=np.inf), axis=1)[:, :limit]
        return [[{ROW: numbers[i]} for i in row] for row in order]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_milvus_search_refuses_candidates_and_queries_that_are_not_finite(value):
    """A collection of an earlier version: the candidates' vectors in the files decide."""
    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    vectors[7, 2] = value
    search = object.__new__(MilvusSearch)
    search._stored, search._rows, search._name = vectors, np.arange(500), "name"
    search._settings, search._server = SearchSettings(), MilvusThatKeepsVectors()
    search._server.rows = dict(enumerate(vectors))
    queries = np.eye(8, dtype=np.float32)
    with pytest.raises(NonFiniteRows) as raised:
        search.search(queries[2:3], 3)
    assert raised.value.rows == [7]
    queries[1, 5] = value
    with pytest.raises(GritError, match="query vector 1 is not finite"):
        search.search(queries, 3)


def test_milvus_is_sent_no_vector_that_is_not_finite():
    server = MilvusThatKeepsVectors()
    vectors = np.eye(8, dtype=np.float32)
    vectors[5, 2] = np.nan
    writer = SimpleNamespace(manifest=SimpleNamespace(milvus=MilvusCollection(None, "c", 0), dim=8))
    with pytest.raises(NonFiniteRows) as raised:
        _send(server, "c_0", writer, np.arange(8), vectors, quiet=True)
    assert raised.value.rows == [5] and not server.rows
