"""Search in fewer bits and dimensions: against plain NumPy, on one device and on eight, from arrays
and from files."""

from __future__ import annotations

import dataclasses
import json

import fake_model
import jax
import ml_dtypes
import numpy as np
import pytest
from fake_model import vector

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.index_files import VECTORS
from grit_jax.rag.search.exact import ExactSearch, SearchSettings
from grit_jax.sharding import MeshConfig, make_mesh

INT8, BFLOAT16 = SearchSettings("int8"), SearchSettings("bfloat16")


def ranked(scores, k):
    """Rows by score, equal scores by row."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def exact(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = ranked(scores, k)
    return rows, np.take_along_axis(scores, rows, 1)


def mesh_of(devices):
    return (
        None
        if devices is None
        else make_mesh(MeshConfig(data=devices, fsdp=1), jax.devices()[:devices])
    )


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, dim, rng, scale=1.0):
    """Unit vectors around 100 centres; `scale` is the deviation of each dimension."""
    centres = rng.standard_normal((100, dim))
    return unit(
        scale * (centres[rng.integers(100, size=count)] + rng.standard_normal((count, dim)))
    )


def searched(vectors, precision, dim):
    """What is searched, by NumPy."""
    short = vectors[:, :dim].astype(np.float64)
    short = (
        short / np.linalg.norm(short, axis=1, keepdims=True) if dim else vectors.astype(np.float64)
    )
    if precision == "bfloat16":
        return short.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    if precision == "int8":
        step = np.abs(short).max(1, keepdims=True) / 127
        return np.rint(short / step) * step
    return short


@dataclasses.dataclass
class Watched:
    """Vectors that remember how many rows each access read."""

    vectors: np.ndarray
    reads: list[int] = dataclasses.field(default_factory=list)

    @property
    def shape(self):
        return self.vectors.shape

    def __getitem__(self, rows):
        self.reads.append(len(self.vectors[rows]))
        return self.vectors[rows]


@pytest.mark.parametrize("devices", [None, 8])
@pytest.mark.parametrize(
    "precision, dim", [("bfloat16", None), ("int8", None), ("float32", 16), ("int8", 16)]
)
def test_the_candidates_are_numpys_and_their_whole_vectors_decide(devices, precision, dim):
    rng = np.random.default_rng(1)
    vectors, queries = clustered(3000, 48, rng), clustered(5, 48, rng)
    search = ExactSearch(
        vectors, mesh_of(devices), block=256, settings=SearchSettings(precision, dim, 3)
    )
    found = search.search(queries, 20)
    candidates = ranked(
        queries[:, :dim].astype(np.float64) @ searched(vectors, precision, dim).T, 60
    )
    whole = np.take_along_axis(
        queries.astype(np.float64) @ vectors.astype(np.float64).T, candidates, 1
    )
    best = np.argsort(-whole, axis=1)[:, :20]
    np.testing.assert_array_equal(found.rows, np.take_along_axis(candidates, best, 1))
    np.testing.assert_allclose(found.scores, np.take_along_axis(whole, best, 1), rtol=1e-6)


@pytest.mark.parametrize("devices", [None, 8])
@pytest.mark.parametrize("settings", [BFLOAT16, INT8, SearchSettings(dim=3)], ids=str)
def test_ties_and_more_than_there_are(devices, settings):
    """Every row is a candidate here, so that the ranking is exact, equal scores in the order of the
    rows."""
    rng = np.random.default_rng(2)
    vectors, queries = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (290, 4))
    vectors[7] = 0
    found = ExactSearch(vectors, mesh_of(devices), settings=settings).search(queries, 400)
    rows, scores = exact(vectors, queries, 400)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.rows.shape == (4, 290)


@pytest.mark.parametrize(
    "settings, kind, least",
    [
        (INT8, "flat", 1.0),
        (BFLOAT16, "flat", 1.0),
        (SearchSettings(dim=128), "decaying", 0.99),
        (SearchSettings("int8", 128), "decaying", 0.99),
        (SearchSettings(dim=128), "flat", 0.97),
    ],
    ids=str,
)
def test_recall_at_ten(settings, kind, least):
    """Measured: 1 in int8 and bfloat16; 0.998 with half of the dimensions where the first say most,
    as Matryoshka training makes them; 0.986 where all say as much ("flat")."""
    rng = np.random.default_rng(0)
    scale = 1.0 if kind == "flat" else (1 + np.arange(256)) ** -0.5
    vectors = clustered(5050, 256, rng, scale)
    vectors, queries = vectors[50:], vectors[:50]
    found = ExactSearch(vectors, settings=settings).search(queries, 10)
    rows, _ = exact(vectors, queries, 10)
    recall = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), rows.tolist())]
    )
    assert recall >= least, recall


def test_fewer_dimensions_are_brought_to_length_one_again():
    """Row 1 points where the query does, but little of it is in the first two dimensions."""
    vectors = unit(np.array([[0.9, 0.5, 0.0], [0.3, 0.0, 1.0]]))
    search = ExactSearch(vectors, settings=SearchSettings(dim=2))
    best = search._search(np.array([[1.0, 0.0]]), 2, None)
    assert best.rows.tolist() == [[1, 0]] and best.scores[0, 0] == pytest.approx(1)
    assert search.search(np.array([[1.0, 0.0, 0.0]]), 2).rows.tolist() == [
        [0, 1]
    ]  # by the whole vectors


@pytest.mark.parametrize("devices", [None, 8])
def test_files_are_read_by_blocks_and_then_candidates_alone(devices):
    watched = Watched(clustered(5000, 8, np.random.default_rng(3)))
    search = ExactSearch(watched, mesh_of(devices), block=256, settings=INT8)
    assert max(watched.reads) == 256 and sum(watched.reads) == 5000
    watched.reads.clear()
    search.search(watched.vectors[:3], 10)
    assert watched.reads == [40, 40, 40]  # oversampling * k


def test_bytes_on_the_devices():
    vectors = clustered(1024, 64, np.random.default_rng(4))
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(ExactSearch(vectors, settings=settings)._rows))
        for settings in (SearchSettings(), BFLOAT16, INT8, SearchSettings("int8", 32))
    ]
    assert sizes == [1024 * 64 * 4, 1024 * 64 * 2, 1024 * (64 + 4), 1024 * (32 + 4)]


def test_an_index_is_searched_as_it_is_opened(tmp_path):
    rows = [{"id": f"d{i}", "text": f"text number {i}"} for i in range(400)]
    model, corpus, path = fake_model.fake_model(), tmp_path / "c.jsonl", tmp_path / "index"

    def build(rows):
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        build_index(
            model,
            corpus,
            path,
            IndexOptions(kv="none", update=True, delete_missing=True),
            quiet=True,
        )

    build(rows)
    rows = [
        row | {"text": "changed " + row["id"]} if i % 10 == 0 else row for i, row in enumerate(rows)
    ][20:]
    build(rows)
    assert (
        len(np.load(path / VECTORS)) == 400 + 38
    )  # deleted rows are in the file, and in no result
    wanted = np.stack([vector([256, *row["text"].encode()]) for row in rows])
    ids = [row["id"] for row in rows]
    queries = wanted[:30]
    _, scores = exact(wanted, queries, 8)
    for settings in (SearchSettings(), INT8, BFLOAT16, SearchSettings(dim=5, oversampling=60)):
        index = Index.open(path, model, settings)
        found = index.search(queries, 8)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
        assert [index.documents[row]["id"] for row in found.rows[:, 0]] == ids[:30]
        with pytest.raises(GritError, match=r"query vectors: expected shape \[Q, 8\]"):
            index.search(queries[:, :5], 1)
        assert "vectors" not in vars(index)  # a copy without the deleted rows, made on demand
        np.testing.assert_array_equal(np.sort(index.vectors, 0), np.sort(wanted, 0))
    with pytest.raises(GritError, match="cannot search 9 dimensions: the vectors have 8"):
        Index.open(path, model, SearchSettings(dim=9))


def test_settings_say_what_is_wrong():
    for wrong, words in (
        ({"precision": "int4"}, "expected float32, bfloat16, int8, got 'int4'"),
        ({"dim": 0}, "at least 1"),
        ({"oversampling": 0}, "at least 1"),
    ):
        with pytest.raises(GritError, match=words):
            SearchSettings(**wrong)
    with pytest.raises(GritError, match="cannot search 5 dimensions"):
        ExactSearch(np.ones((3, 4), np.float32), settings=SearchSettings(dim=5))


@pytest.mark.parametrize("devices", [None, 1, 8])
@pytest.mark.parametrize("count, k, block", [(1, 5, 16384), (700, 10, 256), (3000, 300, 256)])
def test_search_is_exact(devices, count, k, block):
    rng = np.random.default_rng(count)
    # Small integers: scores are exact in float32, and there are many ties.
    vectors, queries = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (count, 5))
    found = ExactSearch(vectors, mesh_of(devices), block=block).search(queries, k)
    rows, scores = exact(vectors, queries, k)
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


@pytest.mark.parametrize("devices", [None, 8])
@pytest.mark.parametrize("precision, dim", [("float32", None), ("int8", 16)])
def test_rows_that_are_not_allowed_are_not_found(devices, precision, dim):
    rng = np.random.default_rng(4)
    vectors, queries = clustered(3000, 48, rng), clustered(5, 48, rng)
    search = ExactSearch(
        vectors, mesh_of(devices), block=256, settings=SearchSettings(precision, dim, 8)
    )
    for share in (0.5, 0.003):
        allowed = rng.random(3000) < share
        numbers = np.flatnonzero(allowed)
        found = search.search(queries, 20, allowed)
        rows, scores = exact(vectors[allowed], queries, 20)
        if precision == "float32" or len(numbers) < 160:  # else few dimensions may miss some
            np.testing.assert_array_equal(found.rows, numbers[rows])
            np.testing.assert_allclose(found.scores, scores, atol=2e-6)
        assert set(found.rows.ravel().tolist()) <= set(numbers.tolist())
    nothing = search.search(queries, 20, np.zeros(3000, bool))
    assert nothing.rows.shape == nothing.scores.shape == (5, 0)
