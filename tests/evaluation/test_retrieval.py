"""Retrieval scores: metrics against hand-computed values, rankings against plain NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.errors import GritError
from grit_jax.evaluation.retrieval import (
    bm25_retrieval,
    evaluate_retrieval,
    ndcg,
    pool_of,
    recall,
    score_rankings,
    score_retrieval,
)
from grit_jax.rag.search.exact import SearchSettings


def test_ndcg_by_hand():
    gold = frozenset({7, 3})
    assert ndcg([7, 3, 1], gold, 10) == pytest.approx(1.0)
    # 1/log2(2) + 1/log2(4) of an ideal 1/log2(2) + 1/log2(3)
    assert ndcg([7, 1, 3], gold, 10) == pytest.approx((1 + 0.5) / (1 + 0.6309297536))
    assert ndcg([1, 2, 4, 7], gold, 10) == pytest.approx(0.4306765581 / 1.6309297536)
    assert ndcg([1, 2], gold, 10) == 0
    assert ndcg([1, 7], frozenset({7}), 1) == 0
    # More relevant ones than places: the ideal is a full list.
    assert ndcg([0, 1], frozenset(range(5)), 2) == pytest.approx(1.0)


def test_recall_by_hand():
    assert recall([1, 2, 3], frozenset({3, 9}), 3) == 0.5
    assert recall([1, 2, 3], frozenset({3, 9}), 2) == 0
    assert recall([9, 3], frozenset({3, 9}), 10) == 1


def test_scores_are_means_over_queries():
    scores = score_rankings([[0, 1], [0, 1]], [{0}, {1}], ks=(1, 2))
    assert scores == pytest.approx(
        {"recall@1": 0.5, "recall@2": 1.0, "ndcg@10": (1 + 0.6309297536) / 2}
    )
    assert all(type(value) is float for value in scores.values())


def example(query, pos, neg=()):
    text = lambda t: Text(*t) if isinstance(t, tuple) else Text(None, t)
    return EmbeddingExample(text(query), tuple(map(text, pos)), tuple(map(text, neg)))


def test_the_pool_holds_every_text_once():
    pool = pool_of(
        [
            example("q0", ["a"], ["b", "c"]),
            example(("find", "q1"), [("", "b"), "d"], ["a", "b"]),
            example("q2", [("other", "a")]),
        ]
    )
    assert [text.text for text in pool.texts] == ["a", "b", "c", "d", "a"]
    assert pool.relevant == [{0}, {1, 3}, {4}]
    assert pool.queries[1] == Text("find", "q1")


def test_against_plain_numpy(tiny_model, sentences, tmp_path):
    find = ("Find", "Look for")
    rows = [
        {
            "query": [find[i % 2], sentences[i]],
            "pos": [["", sentences[20 + i]]],
            "neg": [sentences[40 + i]],
        }
        for i in range(12)
    ]
    path = tmp_path / "embedding.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = np.concatenate(
        [tiny_model.encode([row["query"][1]], row["query"][0]) for row in rows]
    )
    texts = [text for row in rows for text in (row["pos"][0][1], row["neg"][0])]
    ranks = np.argsort(-(queries @ tiny_model.encode(texts).T), axis=1)
    at = [ranks[i].tolist().index(2 * i) for i in range(12)]
    expected = {
        "recall@1": np.mean([place < 1 for place in at]),
        "recall@10": np.mean([place < 10 for place in at]),
        "ndcg@10": np.mean([1 / np.log2(place + 2) if place < 10 else 0 for place in at]),
    }
    assert evaluate_retrieval(tiny_model, path, quiet=True) == pytest.approx(expected)
    few = SearchSettings("int8", 24)  # everything is a candidate here
    assert evaluate_retrieval(tiny_model, path, search=few, quiet=True) == pytest.approx(expected)
    # A query that is its own passage is found.
    same = [example(text, [text], [sentences[60 + i]]) for i, text in enumerate(sentences[:5])]
    assert evaluate_retrieval(tiny_model, same, quiet=True)["recall@1"] == 1.0


def test_texts_that_are_cut_are_counted(tiny_model, sentences):
    """Of two instructions: the query has one, its passages have none; a passage of two rows counts
    once."""
    long = " ".join(sentences[:6])
    rows = [
        example(("Find", long), [sentences[10], long], [sentences[11]]),
        example(("Find", sentences[12]), [long], [" ".join(sentences[6:12])]),
    ]
    tokens = lambda instruction, text: len(
        tiny_model.tokenizer.encode_parts([tiny_model.chat.embed_parts(instruction, text)])[0][-1]
    )
    assert tokens("", long) > 64 > max(tokens("Find", text) for text in sentences[10:13]) + 12
    with pytest.warns(UserWarning, match=r"^3 of 6 texts were cut to 64 tokens") as warned:
        score = score_retrieval(tiny_model, rows, max_length=64, quiet=True)
    assert score.truncated == 3 and len(warned) == 1
    whole = score_retrieval(tiny_model, rows, quiet=True)
    assert whole.truncated == 0
    assert whole.scores == evaluate_retrieval(tiny_model, rows, quiet=True)
    with pytest.raises(GritError, match="max_length is 40000 tokens, but this model's context"):
        score_retrieval(tiny_model, rows, max_length=40000)


def test_bm25_finds_words(tmp_path):
    rows = [
        example("copper lantern", ["a copper lantern shines", "other"], ["a river"]),
        example("moss", ["stone"]),
    ]
    scores = bm25_retrieval(rows, quiet=True)
    assert scores["recall@1"] == pytest.approx((0.5 + 0) / 2)


def test_mistakes_are_named(tiny_model, tmp_path):
    (tmp_path / "g.jsonl").write_text('{"text": "generative"}\n')
    with pytest.raises(GritError, match=r"g\.jsonl:1"):
        evaluate_retrieval(tiny_model, tmp_path / "g.jsonl")
    with pytest.raises(GritError, match="no such file"):
        bm25_retrieval(tmp_path / "absent.jsonl")
    with pytest.raises(GritError, match="no example"):
        evaluate_retrieval(tiny_model, [])
