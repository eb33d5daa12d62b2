"""Retrieval by meaning and by words together: the rankings of a model and of BM25, fused."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from grit_jax.data.bm25 import BM25
from grit_jax.evaluation.retrieval import (
    DenseOptions,
    Examples,
    dense_rankings,
    pool_of,
    score_rankings,
)
from grit_jax.inference.model import GritLM
from grit_jax.runtime.progress import progress

DEPTH = 100  # passages of each ranking that are fused
RANK_OFFSET = 60  # of reciprocal rank fusion, as published


@dataclasses.dataclass(frozen=True)
class RetrievalComparison:
    """Scores by metric (`recall@k`, `ndcg@10`) of three searches over one pool.

    Attributes:
      dense: of the model alone. bm25: of BM25 alone. hybrid: of their fused rankings.
      queries, pool: how many queries, and among how many passages they search.
      truncated: texts that were truncated for the model.
    """

    dense: dict[str, float]
    bm25: dict[str, float]
    hybrid: dict[str, float]
    queries: int
    pool: int
    truncated: int


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion (Cormack et al. 2009): a passage scores `1 / (60 + rank)` in each
    ranking that has it; the sums order the result, equal ones in the order of the first ranking.

    >>> fuse([[3, 1, 2], [1, 4]])
    [1, 3, 4, 2]
    """
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, passage in enumerate(ranking, start=1):
            scores[passage] += 1 / (RANK_OFFSET + rank)
    return sorted(scores, key=scores.__getitem__, reverse=True)  # stable


def compare_retrieval(
    model: GritLM,
    examples: Examples,
    options: DenseOptions = DenseOptions(),
    ks: Sequence[int] = (1, 10),
) -> RetrievalComparison:
    """Scores of a model, of BM25 and of both together on an embedding file.

    Raises:
      GritError: see `evaluation.retrieval.score_retrieval`.
    """
    pool = pool_of(examples)
    dense, truncated = dense_rankings(model, pool, DEPTH, options)
    index = BM25([text.text for text in pool.texts])
    lexical, fused = [], []
    queries = progress(pool.queries, "bm25", "queries", quiet=options.quiet)
    for query, by_meaning in zip(queries, dense, strict=True):
        scores = index.scores(query.text)
        lexical.append(index.search(query.text, DEPTH))
        # A passage without a word of the query has no rank by words.
        fused.append(fuse([by_meaning, [i for i in lexical[-1] if scores[i] > 0]]))
    score = lambda rankings: score_rankings(rankings, pool.relevant, ks)
    return RetrievalComparison(
        dense=score(dense),
        bm25=score(lexical),
        hybrid=score(fused),
        queries=len(pool.queries),
        pool=len(pool.texts),
        truncated=truncated,
    )
