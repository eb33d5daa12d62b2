"""Vectors and caches that hold NaN or infinity: never stored, never searched."""

from __future__ import annotations

import json
from pathlib import Path

import fake_model
import jax
import numpy as np
import pytest
from fake_model import FakeEncoder

from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoded
from grit_jax.rag.index import Index, IndexOptions, SearchSettings, build_index
from grit_jax.rag.index_files import NPY_HEADER, VECTORS
from grit_jax.rag.manifest import read_manifest
from grit_jax.rag.search.exact import ExactSearch, NonFiniteRows
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


class Faulty(FakeEncoder):
    """Spoils what it makes of the texts that contain `word`: the vector or an array of the record."""

    def __init__(self, word: str, what: str, value: float):
        super().__init__()
        self.word, self.what, self.value = word.encode(), what, value

    def encode_ids(self, ids, *args, **kwargs) -> Encoded:
        encoded = super().encode_ids(ids, *args, **kwargs)
        for i, text in enumerate(ids):
            if self.word not in bytes(text[1:]):
                continue
            if self.what == "vector":
                encoded.vectors[i, 3] = self.value
            else:
                record = encoded.caches[i]
                arrays = getattr(record, "arrays", {"v": getattr(record, "v", None)})
                name = "v_range" if "v_range" in arrays else "v"
                arrays[name] = arrays[name].copy()
                arrays[name].flat[5] = self.value
                if hasattr(record, "v"):
                    encoded.caches[i] = type(record)(record.tokens, record.k, arrays["v"])
        return encoded


@pytest.mark.parametrize(
    "kv, what, value",
    [
        ("native", "vector", np.nan),
        ("none", "vector", np.inf),
        ("native", "cache", np.nan),
        ("native", "cache", -np.inf),
        ("int8", "cache", np.nan),
        ("int4", "cache", np.inf),
    ],
)
def test_a_document_that_is_not_finite_is_refused_by_its_id(tmp_path, kv, what, value):
    """The documents committed before it stay, and the build continues once it is repaired."""
    corpus = write(tmp_path / "c.jsonl", ROWS)
    model = fake_model.fake_model()
    model.encoder = Faulty("number 27", what, value)
    options = IndexOptions(kv=kv, batch_tokens=100)
    with pytest.raises(
        GritError, match=r"c\.jsonl:28: the (vector|cache) of document 'd27' is not"
    ):
        build_index(model, corpus, tmp_path / "index", options, quiet=True)
    assert read_manifest(tmp_path / "index").documents < 27
    model.encoder = FakeEncoder()
    build_index(model, corpus, tmp_path / "index", options, quiet=True)
    index = Index.open(tmp_path / "index", model)
    assert len(index) == 40 and np.isfinite(index.vectors).all()


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
