"""Scores of a ranking against graded judgements, by the definitions of trec_eval (`pytrec_eval`).

For one query with judged documents and a cut k, the rank of the first document being 1:

- `ndcg@k`: `ndcg_cut` of trec_eval. The gain of a document is its grade, discounted by
  `1 / log2(rank + 1)` (Järvelin and Kekäläinen 2002), divided by the gain of the best order of all
  judged documents. A grade below 0 gains nothing.
- `recall@k`: `recall`, the share of the relevant documents (grade 1 or more) among the first k.
- `precision@k`: `P`, the relevant documents among the first k, divided by k.
- `map@k`: `map_cut`, the sum of the precisions at the relevant documents among the first k, divided
  by the number of all relevant documents.
- `mrr@k`: `recip_rank` of the first k, 1 / rank of the first relevant document among them, or 0.

Documents without a judgement count as not relevant. A query none of whose judged documents is
relevant scores 0, as in trec_eval.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

METRICS = ("ndcg", "recall", "mrr", "map", "precision")


def query_scores(
    ranking: Sequence[str], judgements: Mapping[str, int], ks: Sequence[int]
) -> dict[str, float]:
    """`{"ndcg@1": ..., ...}`: each of METRICS at each of `ks`, for one query.

    Args:
      ranking: ids of documents, best first; at least `max(ks)` of them where there are so many.
      judgements: the grade of each judged document, by its id.

    >>> scores = query_scores(["b", "x", "a"], {"a": 2, "b": 1}, [3])
    >>> {name: round(score, 4) for name, score in scores.items()}
    {'ndcg@3': 0.7602, 'recall@3': 1.0, 'mrr@3': 1.0, 'map@3': 0.8333, 'precision@3': 0.6667}
    """
    grades = [judgements.get(id, 0) for id in ranking[: max(ks)]]
    ideal = sorted((grade for grade in judgements.values() if grade > 0), reverse=True)
    hits = [grade > 0 for grade in grades]
    # Relevant documents up to each rank, and the sum of the precisions at them.
    counts = [0, *itertools.accumulate(hits)]
    precisions = [
        0.0,
        *itertools.accumulate(
            counts[rank] / rank if hit else 0.0 for rank, hit in enumerate(hits, start=1)
        ),
    ]
    first = hits.index(True) + 1 if any(hits) else None
    scores: dict[str, float] = {}
    for metric in METRICS:
        for k in ks:
            depth = min(k, len(grades))
            if not ideal:
                value = 0.0
            elif metric == "ndcg":
                value = _gain(grades[:depth]) / _gain(ideal[:k])
            elif metric == "recall":
                value = counts[depth] / len(ideal)
            elif metric == "mrr":
                value = 1 / first if first is not None and first <= k else 0.0
            elif metric == "map":
                value = precisions[depth] / len(ideal)
            else:
                value = counts[depth] / k
            scores[f"{metric}@{k}"] = float(value)
    return scores


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over queries, of which there is at least one."""
    return {name: float(np.mean([query[name] for query in scores])) for name in scores[0]}


def trec_order(ids: Sequence[str], scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The order in which trec_eval reads one query's documents: by score as float32, the highest
    first, and equal scores by id, the last in the order of code points first.

    >>> trec_order(["d1", "d2", "d3"], np.array([0.5, 0.5, 0.9])).tolist()
    [2, 1, 0]
    """
    values = np.asarray(scores, np.float32)
    by_id = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
    return np.array(sorted(by_id, key=lambda i: -values[i]), np.int64)


def _gain(grades: Sequence[int]) -> float:
    """The discounted gain of documents by their grades, best rank first."""
    return sum(grade * _discount(rank) for rank, grade in enumerate(grades) if grade > 0)


@functools.cache
def _discount(rank: int) -> float:
    """Of the document at `rank`, counted from 0."""
    return 1 / float(np.log2(rank + 2))
