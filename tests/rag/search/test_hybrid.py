"""Search by words and by both: fusion by hand, and results against the whole ranking."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.data.bm25 import BM25
from grit_jax.errors import GritError
from grit_jax.rag.search.exact import ExactSearch
from grit_jax.rag.search.hybrid import (
    CANDIDATES,
    Hits,
    HybridSearch,
    Retrieval,
    fuse_ranks,
    fuse_scores,
    lexical_hits,
)

WORDS = ["river", "stone", "paper", "amber", "quiet", "engine", "window", "forest"]


def hits(rows, scores=None):
    scores = np.zeros(len(rows)) if scores is None else scores
    return Hits(np.array(rows, np.int64), np.array(scores, np.float32))


def by_row(fused):
    return dict(zip(fused.rows.tolist(), fused.scores.tolist()))


def test_reciprocal_ranks_are_added():
    # 1/61 + 1/63 = .032266 for 7, 1/62 + 1/61 = .032522 for 8; once ranked, 1/62 and 1/63.
    fused = fuse_ranks(hits([7, 8, 9]), hits([8, 6, 7]), 0.5)
    assert fused.rows.tolist() == [8, 7, 6, 9]
    halves = [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63]
    np.testing.assert_allclose(2 * fused.scores, halves)
    np.testing.assert_allclose(fuse_ranks(hits([3]), hits([]), 0.2).scores, [0.2 / 61])
    # Equal ones in the order of the first.
    assert fuse_ranks(hits([1]), hits([2])).rows.tolist() == [1, 2]


def test_standardised_scores_are_added():
    # 3, 2, 1: standard deviation sqrt(2/3). 6, 0, 0: mean 2, standard deviation sqrt(8).
    fused = by_row(fuse_scores(hits([5, 6, 7], [3, 2, 1]), hits([9], [6]), 0.25))
    a, b = 1.5**0.5, 2 / 8**0.5
    expected = {5: 0.25 * a - 0.75 * b, 6: -0.75 * b, 7: -0.25 * a - 0.75 * b}
    expected[9] = -0.25 * a + 1.5 * b  # not among the dense candidates: as the last of them
    assert fused.keys() == expected.keys()
    for row, score in expected.items():
        assert fused[row] == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_units_of_a_score_do_not_matter(scale):
    dense, lexical = np.sort(np.random.default_rng(0).random((2, 30)), axis=1)[:, ::-1]
    expected = fuse_scores(hits(range(30), dense), hits(range(20, 50), lexical))
    scaled = fuse_scores(hits(range(30), dense * scale + 5), hits(range(20, 50), lexical))
    assert by_row(scaled) == pytest.approx(by_row(expected), abs=1e-3)


def test_a_search_that_tells_nothing_counts_nothing():
    dense = hits([4, 3], [0.2, 0.1])
    for nothing in (hits([]), hits([3, 4], [7.3, 7.3])):
        assert by_row(fuse_scores(dense, nothing, 0.6)) == pytest.approx({4: 0.6, 3: -0.6})
    assert by_row(fuse_scores(hits([1], [0.2]), hits([1], [3.0]))) == {1: 0}
    assert by_row(fuse_scores(hits([]), hits([]))) == {}


def test_a_document_without_a_word_of_the_query_is_not_found_by_words():
    hits = lexical_hits(np.array([0.0, 2.0, 1.0, 0.0, 2.0]), 4)
    assert hits.rows.tolist() == [1, 4, 2] and hits.scores.tolist() == [2, 2, 1]
    assert lexical_hits(np.zeros(3), 2).rows.tolist() == []
    allowed = np.array([True, False, True, True, True])
    assert lexical_hits(np.array([0.0, 2.0, 1.0, 0.0, 2.0]), 1, allowed).rows.tolist() == [4]


@pytest.fixture(scope="module")
def world():
    """300 documents with random words and vectors, and 6 queries."""
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(300)]
    vectors = rng.standard_normal((306, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    search = HybridSearch(ExactSearch(vectors[:300]), BM25(texts))
    return texts, vectors, search, ["river", "stone paper", "no such", "quiet", "amber river", ""]


@pytest.mark.parametrize("fusion", ["scores", "ranks"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_best_of_the_fused_candidates(world, fusion, masked):
    """Against both whole rankings, fused by the formulas written out."""
    texts, vectors, search, queries = world
    allowed = np.random.default_rng(5).random(300) < 0.7 if masked else None
    free = range(300) if allowed is None else np.flatnonzero(allowed).tolist()
    found = search.search(queries, vectors[300:], 7, Retrieval("hybrid", fusion, 0.3), allowed)
    for query, vector, hits in zip(queries, vectors[300:], found, strict=True):
        words, products = search.lexical.scores(query), vectors[:300] @ vector
        by_dense = sorted(free, key=lambda i: (-products[i], i))[:CANDIDATES]
        by_words = sorted(free, key=lambda i: (-words[i], i))[:CANDIDATES]
        scores = dict.fromkeys([*by_dense, *(i for i in by_words if words[i])], 0.0)
        for weight, ranking, of in ((0.3, by_dense, products), (0.7, by_words, words)):
            values = np.array([of[i] for i in ranking])
            for row in scores:
                if fusion == "ranks":
                    if row in ranking and (of is products or of[row]):
                        scores[row] += weight / (61 + ranking.index(row))
                elif values.std() > 0:
                    value = of[row] if row in ranking else values.min()
                    scores[row] += weight * (value - values.mean()) / values.std()
        best = sorted(scores, key=lambda i: -scores[i])[:7]
        np.testing.assert_allclose(hits.scores, [scores[i] for i in best], rtol=1e-4, atol=1e-5)
        for row, score in zip(hits.rows.tolist(), hits.scores):
            assert scores[row] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_a_word_that_one_document_has_finds_it(world):
    """Whatever its vector is."""
    texts, vectors, search, _ = world
    far = int(np.argmin(vectors[:300] @ vectors[300]))
    lexical = BM25([text if i != far else "zebra" for i, text in enumerate(texts)])
    [hits] = HybridSearch(search.dense, lexical).search(["zebra"], vectors[300:301], 1)
    assert hits.rows.tolist() == [far]


def test_nothing_is_allowed(world):
    _, vectors, search, queries = world
    for hits in search.search(queries, vectors[300:], 3, allowed=np.zeros(300, bool)):
        assert hits.rows.tolist() == [] == hits.scores.tolist()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"search": "words"}, "search: expected dense, lexical, hybrid, got 'words'"),
        ({"fusion": "sum"}, "fusion: expected scores, ranks, got 'sum'"),
        ({"dense_weight": 1.5}, "dense weight: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(GritError, match=message):
        Retrieval(**arguments)
