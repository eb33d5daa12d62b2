"""Searches of a retrieval task beside each other: by vectors, by words, by both, and reranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from grit_jax.data.bm25 import BM25, best
from grit_jax.data.formats import Text
from grit_jax.errors import GritError
from grit_jax.evaluation.embedders import Embedder, document_vectors
from grit_jax.evaluation.judges import Judge
from grit_jax.evaluation.ranking_metrics import mean_scores, query_scores, trec_order
from grit_jax.evaluation.retrieval_data import RetrievalTask
from grit_jax.rag.search.exact import ExactSearch, SearchSettings
from grit_jax.rag.search.hybrid import (
    CANDIDATES,
    SEARCHES,
    Hits,
    HybridSearch,
    Retrieval,
    dense_hits,
    lexical_hits,
)
from grit_jax.runtime.progress import progress

KS = (1, 3, 5, 10, 100)
NAMES = {"dense": "model", "lexical": "bm25", "hybrid": "hybrid"}  # of searches in results
# Documents beyond the last rank that are looked at: those that are equal there are ordered by id.
TIED = 100
RERANKED = "+rerank"  # follows a search's name

Rankings: TypeAlias = list[Hits]  # of each query


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What is searched, and what is scored.

    Attributes:
      searches: of "dense", "lexical" and "hybrid".
      retrieval: how "hybrid" fuses, and how many candidates of each search are reranked.
      search: the precision and the dimensions of the vector search.
      ks: the cuts of the scores.
      depth: documents of each ranking; None: the largest of `ks` and of the reranked candidates.
      drop_identical: leave out the document whose id is the query's, as BEIR's evaluation does.
      vectors: a folder that keeps the documents' vectors (`embedders.document_vectors`).
    """

    searches: Sequence[str] = SEARCHES
    retrieval: Retrieval = Retrieval("hybrid")
    search: SearchSettings = SearchSettings()
    ks: Sequence[int] = KS
    depth: int | None = None
    drop_identical: bool = True
    vectors: Path | None = None

    @property
    def ranked(self) -> int:
        """Documents of each ranking."""
        least = max(*self.ks, self.retrieval.rerank)
        if self.depth is not None and self.depth < least:
            raise GritError(
                f"--depth {self.depth}: --k and --rerank need rankings of at least {least}"
                " documents"
            )
        return self.depth or least


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What one search has found for all queries of a task.

    Attributes:
      ids: of each query's documents, best first.
      values: what the search scored them by.
      scores: of each query (`ranking_metrics.query_scores`).
    """

    ids: list[list[str]]
    values: list[np.ndarray]
    scores: list[dict[str, float]]

    @property
    def means(self) -> dict[str, float]:
        """The scores, averaged over queries."""
        return mean_scores(self.scores)


@dataclasses.dataclass(frozen=True)
class RetrievalRun:
    """What was found for a task.

    Attributes:
      searches: by name: "model", "bm25", "hybrid", each with RERANKED, too.
      truncated: texts that were truncated.
      variants: what the search by vectors finds for the queries in other words, by name.
    """

    task: RetrievalTask
    searches: dict[str, Ranked]
    truncated: int
    variants: dict[str, Ranked] = dataclasses.field(default_factory=dict)


def run_retrieval(
    task: RetrievalTask,
    embedder: Embedder | None,
    settings: RunSettings = RunSettings(),
    judge: Judge | None = None,
    variants: Mapping[str, Sequence[Text]] | None = None,
) -> RetrievalRun:
    """Searches a task's documents for all its queries, and scores what is found.

    Args:
      embedder: None: for searches by words alone.
      judge: scores the candidates that `settings.retrieval.rerank` asks for.
      variants: other texts of all queries, by name, for which the search by vectors is repeated.

    Raises:
      GritError: a depth below a cut, or as `embedders.document_vectors` and `ExactSearch`.
    """
    depth, truncated = settings.ranked, 0
    varied: dict[str, Rankings] = {}
    query_vectors: np.ndarray | None = None
    if {"dense", "hybrid"} & {*settings.searches}:
        assert embedder is not None
        query_vectors, truncated = embedder.embed(task.queries)
        with document_vectors(task, embedder, settings.vectors) as documents:
            truncated += documents.truncated
            dense = ExactSearch(documents.vectors, embedder.mesh, settings=settings.search)
            found = _search(task, dense, query_vectors, settings, depth)
            for name, queries in (variants or {}).items():
                query_vectors, cut = embedder.embed(queries)
                truncated += cut
                alone = dataclasses.replace(settings, searches=["dense"])
                [varied[name]] = _search(task, dense, query_vectors, alone, depth).values()
    else:
        found = _search(task, None, None, settings, depth)
    if settings.retrieval.rerank:
        assert judge is not None
        found |= rerank(task, found, judge, settings.retrieval.rerank)
    return RetrievalRun(
        task,
        {name: _ranked(task, hits, settings.ks) for name, hits in found.items()},
        truncated,
        {name: _ranked(task, hits, settings.ks) for name, hits in varied.items()},
    )


def _search(
    task: RetrievalTask,
    dense: ExactSearch | None,
    query_vectors: np.ndarray | None,
    settings: RunSettings,
    depth: int,
) -> dict[str, Rankings]:
    """The rankings of each search by its name."""
    own = _own_documents(task) if settings.drop_identical else {}
    most = depth + bool(own) + (TIED if task.has_ids else 0)
    texts = [query.text for query in task.queries]
    found: dict[str, Rankings] = {}
    if "dense" in settings.searches:
        assert dense is not None and query_vectors is not None
        found["dense"] = dense_hits(dense.search(query_vectors, most))
    if {"lexical", "hybrid"} & {*settings.searches}:
        lexical = BM25(document.content for document in task.documents)
        if "lexical" in settings.searches:
            found["lexical"] = [
                _lexical(lexical.scores(text), most, task)
                for text in progress(texts, "bm25", "queries")
            ]
        if "hybrid" in settings.searches:
            assert dense is not None and query_vectors is not None
            both = HybridSearch(dense, lexical)
            # As many as a search for a few documents has: scores at a low cut must not depend on
            # whether there is a higher one.
            found["hybrid"] = both.search(
                texts,
                query_vectors,
                most,
                settings.retrieval,
                candidates=max(CANDIDATES, depth) + bool(own),
            )
    return {
        NAMES[search]: [
            _ordered(task, hits, own.get(query), depth) for query, hits in enumerate(found[search])
        ]
        for search in SEARCHES
        if search in found
    }


def rerank(
    task: RetrievalTask, found: dict[str, Rankings], judge: Judge, candidates: int
) -> dict[str, Rankings]:
    """Each ranking with its first candidates in the order of the judge's scores, equal ones in
    their order; the others stay behind them. A document that several searches have among their
    candidates is judged once."""
    reranked: dict[str, Rankings] = {f"{name}{RERANKED}": [] for name in found}
    for query in progress(range(len(task.queries)), "rerank", "queries"):
        firsts = {name: hits[query].rows[:candidates].tolist() for name, hits in found.items()}
        numbers = list(dict.fromkeys(row for rows in firsts.values() for row in rows))
        judged: dict[int, float] = {}
        if numbers:
            documents = [task.documents[number] for number in numbers]
            scores = judge.scores(task.queries[query].text, numbers, documents)
            judged = dict(zip(numbers, scores.tolist(), strict=True))
        for name, rows in firsts.items():
            values = np.array([judged[row] for row in rows])
            order = np.argsort(-values, kind="stable")
            before = found[name][query]
            reranked[f"{name}{RERANKED}"].append(
                Hits(
                    np.concatenate([before.rows[: len(rows)][order], before.rows[len(rows) :]]),
                    np.concatenate([values[order], before.scores[len(rows) :]]),
                )
            )
    return reranked


def _lexical(scores: np.ndarray, k: int, task: RetrievalTask) -> Hits:
    """The best documents by BM25; of an embedding file, those without a word of the query, too."""
    if task.has_ids:
        return lexical_hits(scores, k)
    rows = best(scores, k)
    return Hits(rows, scores[rows])


def _own_documents(task: RetrievalTask) -> dict[int, int]:
    """Of each query whose id is a document's: that document's number."""
    if not task.has_ids:
        return {}
    queries = {id: query for query, id in enumerate(task.query_ids)}
    return {queries[id]: number for number, id in enumerate(task.documents.ids) if id in queries}


def _ordered(task: RetrievalTask, hits: Hits, own: int | None, depth: int) -> Hits:
    """The first `depth` documents without the query's own; equal scores as trec_eval orders them,
    if documents have ids."""
    rows, scores = hits.rows, hits.scores
    if own is not None:
        keep = rows != own
        rows, scores = rows[keep], scores[keep]
    if task.has_ids:
        order = trec_order([task.documents.ids[row] for row in rows.tolist()], scores)
        rows, scores = rows[order], scores[order]
    return Hits(rows[:depth], scores[:depth])


def _ranked(task: RetrievalTask, rankings: Rankings, ks: Sequence[int]) -> Ranked:
    ids = [[task.documents.ids[row] for row in hits.rows.tolist()] for hits in rankings]
    scores = [
        query_scores(ranking, judgements, ks)
        for ranking, judgements in zip(ids, task.judgements, strict=True)
    ]
    return Ranked(ids, [hits.scores for hits in rankings], scores)
