"""Scores of rankings: values by hand, and those of trec_eval itself (pytrec_eval)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval

from grit_jax.evaluation.ranking_metrics import METRICS, mean_scores, query_scores, trec_order

KS = (1, 3, 5, 10, 100)
TREC = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P"}


def test_by_hand():
    judgements = {"a": 3, "b": 1, "c": 0, "d": 1}
    scores = query_scores(["x", "a", "c", "b"], judgements, [1, 4])
    assert [scores[f"{m}@1"] for m in METRICS] == [0, 0, 0, 0, 0]
    ideal = 3 + 1 / math.log2(3) + 1 / 2
    assert scores["ndcg@4"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert scores["recall@4"] == pytest.approx(2 / 3)
    assert scores["mrr@4"] == 0.5
    assert scores["map@4"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert scores["precision@4"] == 0.5
    assert query_scores([], judgements, [3])["ndcg@3"] == 0
    assert query_scores(["a"], {"a": 0}, [3]) == dict.fromkeys(scores_at(3), 0.0)


def scores_at(k):
    return [f"{metric}@{k}" for metric in METRICS]


def test_as_trec_eval():
    """Graded and negative judgements, unjudged documents, scores that are equal as float32,
    rankings shorter than the cut, queries without a relevant document."""
    rng = np.random.default_rng(0)
    qrels, runs = {}, {}
    for query in range(60):
        ids = [f"d{n}" for n in rng.permutation(200)[:150]]
        judged = ids[:: int(rng.integers(2, 40))]
        grades = rng.integers(-1, 4 if query % 10 else 1, len(judged))
        qrels[f"q{query}"] = {id: int(g) for id, g in zip(judged, grades)}
        retrieved = rng.permutation(ids)[: int(rng.integers(1, 150))].tolist()
        values = (
            rng.integers(0, 20, len(retrieved)) / 7 + rng.integers(0, 2, len(retrieved)) * 1e-12
        )
        runs[f"q{query}"] = dict(zip(retrieved, values.tolist()))
    cuts = ",".join(map(str, KS))
    expected = pytrec_eval.RelevanceEvaluator(
        qrels, {f"{name}.{cuts}" for name in TREC.values()} | {"recip_rank"}
    ).evaluate(runs)
    for query, run in runs.items():
        order = trec_order(list(run), np.array(list(run.values())))
        ranking = [list(run)[i] for i in order]
        scores = query_scores(ranking, qrels[query], KS)
        assert scores.keys() == {name for k in KS for name in scores_at(k)}
        for k in KS:
            for metric, name in TREC.items():
                assert scores[f"{metric}@{k}"] == pytest.approx(expected[query][f"{name}_{k}"])
        # trec_eval has no cut for it: the rank of the first relevant document among all.
        reciprocal = expected[query]["recip_rank"]
        for k in KS:
            within = reciprocal if reciprocal and round(1 / reciprocal) <= k else 0
            assert scores[f"mrr@{k}"] == pytest.approx(within)


def test_means():
    assert mean_scores([{"ndcg@1": 1.0}, {"ndcg@1": 0.5}]) == {"ndcg@1": 0.75}
