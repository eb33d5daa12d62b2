"""Search by meaning and by words together: fusion by hand, and each part as it is alone."""

from __future__ import annotations

import pytest

from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.evaluation import hybrid
from grit_jax.evaluation.hybrid import compare_retrieval, fuse
from grit_jax.evaluation.retrieval import bm25_retrieval, evaluate_retrieval


def test_reciprocal_ranks_are_added():
    # 1/61 + 1/63 = .032266 for "a", 1/62 + 1/61 = .032522 for "b"; once ranked, 1/62 and 1/63.
    assert fuse([["a", "b", "c"], ["b", "d", "a"]]) == ["b", "a", "d", "c"]
    assert fuse([[3, 1], []]) == [3, 1]
    assert fuse([[1], [2]]) == [1, 2]  # equal ones in the order of the first


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


def test_a_passage_without_a_word_of_the_query_has_no_rank_by_words(tiny_model, monkeypatch):
    rows = [example("one", "one two", ["three", "four"]), example("five", "six", ["seven"])]
    given = {0: [1, 2, 0, 3, 4], 1: [4, 3, 2, 1, 0]}  # passages: one two, three, four, six, seven
    monkeypatch.setattr(hybrid, "dense_rankings", lambda *a: (list(given.values()), 0))
    scores = compare_retrieval(tiny_model, rows, ks=(1, 2)).hybrid
    # First query: 1/63 + 1/61 puts its passage first. Second: no word, the order by meaning stays.
    assert scores["recall@1"] == 0.5 and scores["recall@2"] == 1.0
    assert scores["ndcg@10"] == pytest.approx((1 + 0.6309297536) / 2)
