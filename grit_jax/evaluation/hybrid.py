"""Retrieval by meaning, by words, and by both, on one embedding file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from grit_jax.data.bm25 import BM25, best
from grit_jax.evaluation.retrieval import (
    NDCG_AT,
    DenseOptions,
    Examples,
    Pool,
    encode_pool,
    pool_of,
    score_rankings,
)
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.rerank import relevance, relevance_prompts
from grit_jax.rag.search.exact import ExactSearch
from grit_jax.rag.search.hybrid import SEARCHES, HybridSearch, Retrieval
from grit_jax.runtime.progress import progress
from grit_jax.text.length import length_limit

RECORDS_KEPT = 1024  # of passages, in memory for the next queries


@dataclasses.dataclass(frozen=True)
class RetrievalComparison:
    """Scores by metric (`recall@k`, `ndcg@10`) of three searches over one pool; none (`{}`) of a
    search that was not asked for.

    Attributes:
      dense: of the model alone. bm25: of BM25 alone. hybrid: of both, fused.
      reranked: of the last of these searches that was asked for, its first candidates reranked by
        the model.
      queries, pool: how many queries, and among how many passages they search.
      truncated: texts that were truncated for the model.
    """

    dense: dict[str, float]
    bm25: dict[str, float]
    hybrid: dict[str, float]
    queries: int
    pool: int
    truncated: int
    reranked: dict[str, float] = dataclasses.field(default_factory=dict)


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
      retrieval: how "hybrid" fuses, and how many candidates are reranked.

    Raises:
      GritError: see `evaluation.retrieval.score_retrieval`.
    """
    pool = pool_of(examples)
    k = max(*ks, NDCG_AT)
    texts = [query.text for query in pool.queries]
    rankings: dict[str, list[list[int]]] = {}
    candidates: list[list[int]] = []  # of the last search
    most = max(k, retrieval.rerank)
    truncated = 0
    if {"dense", "hybrid"} & {*searches}:
        vectors = encode_pool(model, pool, options)
        truncated = vectors.truncated
        dense = ExactSearch(vectors.passages, model.mesh, settings=options.search)
        candidates = dense.search(vectors.queries, most).rows.tolist()
        rankings["dense"] = candidates
    if {"lexical", "hybrid"} & {*searches}:
        lexical = BM25([text.text for text in pool.texts])
        shown = progress(texts, "bm25", "queries", quiet=options.quiet)
        rankings["lexical"] = [best(lexical.scores(text), most).tolist() for text in shown]
        candidates = rankings["lexical"] if "lexical" in searches else candidates
    if "hybrid" in searches:
        both = HybridSearch(dense, lexical)
        fused = lambda k: both.search(texts, vectors.queries, k, retrieval)
        rankings["hybrid"] = [hits.rows.tolist() for hits in fused(k)]
        candidates = [hits.rows.tolist() for hits in fused(most)]
    scores = {
        search: score_rankings(rankings[search], pool.relevant, ks) if search in searches else {}
        for search in SEARCHES
    }
    reranked = {}
    if retrieval.rerank:
        first = [ranking[: retrieval.rerank] for ranking in candidates]
        judged = rerank_pool(model, pool, first, options)
        # Behind the reranked candidates the others stay in their order.
        rankings["reranked"] = [
            [*head, *tail[retrieval.rerank :]]
            for head, tail in zip(judged, candidates, strict=True)
        ]
        reranked = score_rankings(rankings["reranked"], pool.relevant, ks)
    return RetrievalComparison(
        dense=scores["dense"],
        bm25=scores["lexical"],
        hybrid=scores["hybrid"],
        queries=len(pool.queries),
        pool=len(pool.texts),
        truncated=truncated,
        reranked=reranked,
    )


def rerank_pool(
    model: GritLM,
    pool: Pool,
    candidates: Sequence[Sequence[int]],
    options: DenseOptions = DenseOptions(),
) -> list[list[int]]:
    """The candidates of each query by the probability that they are relevant (`rag/rerank.py`),
    after records that are computed here; equal ones in their order."""
    generator = RagGenerator(model, length_limit(options.max_length, model.config.context_length))
    records: dict[int, KVRecord] = {}
    reranked = []
    pairs = progress(
        list(zip(pool.queries, candidates, strict=True)), "rerank", "queries", quiet=options.quiet
    )
    for query, numbers in pairs:
        if len(records) + len(numbers) > RECORDS_KEPT:
            records = {}
        missing = [number for number in numbers if number not in records]
        texts = [pool.texts[number].text for number in missing]
        records |= dict(zip(missing, generator.records(texts) if texts else [], strict=True))
        documents = [pool.texts[number].text for number in numbers]
        prompts = relevance_prompts(query.text, documents, [records[n] for n in numbers])
        scores = relevance(generator, prompts)
        reranked.append([numbers[i] for i in np.argsort(-scores, kind="stable").tolist()])
    return reranked
