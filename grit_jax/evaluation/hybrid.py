"""Retrieval by meaning, by words, and by both, on one embedding file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grit_jax.data.bm25 import BM25, best
from grit_jax.evaluation.retrieval import (
    NDCG_AT,
    DenseOptions,
    Examples,
    encode_pool,
    pool_of,
    score_rankings,
)
from grit_jax.inference.model import GritLM
from grit_jax.rag.search.exact import ExactSearch
from grit_jax.rag.search.hybrid import SEARCHES, HybridSearch, Retrieval
from grit_jax.runtime.progress import progress


@dataclasses.dataclass(frozen=True)
class RetrievalComparison:
    """Scores by metric (`recall@k`, `ndcg@10`) of three searches over one pool; none (`{}`) of a
    search that was not asked for.

    Attributes:
      dense: of the model alone. bm25: of BM25 alone. hybrid: of both, fused.
      queries, pool: how many queries, and among how many passages they search.
      truncated: texts that were truncated for the model.
    """

    dense: dict[str, float]
    bm25: dict[str, float]
    hybrid: dict[str, float]
    queries: int
    pool: int
    truncated: int


def compare_retrieval(
    model: GritLM,
    examples: Examples,
    options: DenseOptions = DenseOptions(),
    ks: Sequence[int] = (1, 10),
    *,
    searches: Sequence[str] = SEARCHES,
    retrieval: Retrieval = Retrieval("hybrid"),
) -> RetrievalComparison:
    """Scores of a model, of BM25 and of both together on an embedding file.

    Args:
      searches: which of "dense", "lexical" and "hybrid"; the model reads nothing for "lexical"
        alone.
      retrieval: how "hybrid" fuses.

    Raises:
      GritError: see `evaluation.retrieval.score_retrieval`.
    """
    pool = pool_of(examples)
    k = max(*ks, NDCG_AT)
    texts = [query.text for query in pool.queries]
    rankings: dict[str, list[list[int]]] = {}
    truncated = 0
    if {"dense", "hybrid"} & {*searches}:
        vectors = encode_pool(model, pool, options)
        truncated = vectors.truncated
        dense = ExactSearch(vectors.passages, model.mesh, settings=options.search)
        rankings["dense"] = dense.search(vectors.queries, k).rows.tolist()
    if {"lexical", "hybrid"} & {*searches}:
        lexical = BM25([text.text for text in pool.texts])
        shown = progress(texts, "bm25", "queries", quiet=options.quiet)
        rankings["lexical"] = [best(lexical.scores(text), k).tolist() for text in shown]
    if "hybrid" in searches:
        both = HybridSearch(dense, lexical)
        rankings["hybrid"] = [
            hits.rows.tolist() for hits in both.search(texts, vectors.queries, k, retrieval)
        ]
    scores = {
        search: score_rankings(rankings[search], pool.relevant, ks) if search in searches else {}
        for search in SEARCHES
    }
    return RetrievalComparison(
        dense=scores["dense"],
        bm25=scores["lexical"],
        hybrid=scores["hybrid"],
        queries=len(pool.queries),
        pool=len(pool.texts),
        truncated=truncated,
    )
