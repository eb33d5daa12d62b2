"""Search by meaning and by words together: each part as it is alone, and fusion over a pool."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.evaluation import hybrid
from grit_jax.evaluation.hybrid import compare_retrieval, rerank_pool
from grit_jax.evaluation.retrieval import (
    PoolVectors,
    bm25_retrieval,
    evaluate_retrieval,
    pool_of,
)
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.rerank import relevance, relevance_prompts
from grit_jax.rag.search.hybrid import Retrieval


def example(query, pos, neg):
    text = lambda t: Text(None, t)
    return EmbeddingExample(text(query), (text(pos),), tuple(map(text, neg)))


def test_the_parts_are_those_alone(tiny_model, sentences):
    rows = [example(s, t, [u]) for s, t, u in zip(sentences, sentences[20:40], sentences[40:])]
    compared = compare_retrieval(tiny_model, rows)
    assert compared.dense == evaluate_retrieval(tiny_model, rows)
    assert compared.bm25 == bm25_retrieval(rows)
    assert (compared.queries, compared.pool, compared.truncated) == (20, 40, 0)
    assert 0 < compared.hybrid["ndcg@10"] < 1
    weighted = lambda weight: Retrieval("hybrid", dense_weight=weight)
    only = compare_retrieval(tiny_model, rows, searches=["hybrid"], retrieval=weighted(1))
    assert only.hybrid == compared.dense and only.dense == only.bm25 == {}


def test_words_alone_need_no_model(sentences):
    rows = [example(s, t, []) for s, t in zip(sentences[:3], sentences[3:6])]
    compared = compare_retrieval(None, rows, searches=["lexical"])
    assert compared.bm25 == bm25_retrieval(rows)


@pytest.mark.parametrize("fusion, first", [("scores", 1.0), ("ranks", 0.5)])
def test_a_sure_search_by_words_decides(monkeypatch, fusion, first):
    """By its scores; ranks do not tell that it is sure."""
    rows = [
        example("whale river", "whale river", ["river"]),
        example("boat", "boat", ["stone", "tree"]),
    ]
    # Passages in order: whale river, river, boat, stone, tree.
    vectors = PoolVectors(
        np.array([[1, 0], [0, 1]], np.float32),
        np.array([[0.80, 0], [0.81, 0], [0, 0.50], [0, 0.9], [0, 0.88]], np.float32),
        0,
    )
    monkeypatch.setattr(hybrid, "encode_pool", lambda *a: vectors)

    class Model:
        mesh = None

    found = compare_retrieval(Model(), rows, ks=(1,), retrieval=Retrieval("hybrid", fusion)).hybrid
    assert found["recall@1"] == first


def test_the_first_candidates_are_reranked(tiny_model, sentences):
    """Each as if it were alone; the others stay behind them, in their order."""
    rows = [example(s, t, []) for s, t in zip(sentences[:3], sentences[20:26])]
    retrieval = Retrieval("hybrid", rerank=2)
    compared = compare_retrieval(tiny_model, rows, ks=(1, 2), retrieval=retrieval)
    assert compared.reranked.keys() == {"recall@1", "recall@2", "ndcg@10"}
    one = compare_retrieval(tiny_model, rows, ks=(1, 2), retrieval=Retrieval("hybrid", rerank=1))
    assert one.reranked == one.hybrid  # nothing to put in order
    # Which two come first is the search's; their order is the model's.
    assert compared.reranked["recall@2"] == compared.hybrid["recall@2"]
    pool = pool_of(rows)
    whole = rerank_pool(tiny_model, pool, [[0, 1, 2]] * 3)
    generator = RagGenerator(tiny_model)
    for query, ranking in zip(pool.queries, whole):
        records = generator.records([text.text for text in pool.texts])
        prompts = relevance_prompts(query.text, [text.text for text in pool.texts], records)
        alone = [relevance(generator, [prompt])[0] for prompt in prompts]
        assert ranking == sorted(range(3), key=lambda i: -alone[i])
    assert compare_retrieval(tiny_model, rows, searches=["dense"]).reranked == {}
