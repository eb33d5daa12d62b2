"""`/v1/vector_stores`: the indices of the server, and search over their documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grit_jax.errors import GritError
from grit_jax.inference.requests import EmbedRequest
from grit_jax.rag.prepared import Preparer
from grit_jax.rag.search.hybrid import SEARCHES, Retrieval
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.filters import expression_of
from grit_jax.serving.paging import list_body, page_of
from grit_jax.serving.protocol import RankingOptions, StoreSearchBody
from grit_jax.serving.request_trace import current, stage
from grit_jax.serving.service import Service
from grit_jax.serving.sources import source_of

MOST_RESULTS, DEFAULT_RESULTS = 50, 10  # OpenAI's
MOST_STORES, DEFAULT_STORES = 100, 20  # of a page
RANKERS = ("auto", "none", "default-2024-11-15")


def stores_list(service: Service, query: Mapping[str, str]) -> dict[str, Any]:
    """The stores, a page of them.

    Raises:
      ApiError: 400 for a limit or order that is none, 404 for an unknown `after`.
    """
    names = [store.name for store in service.stores]
    page, more = page_of(names, query, default=DEFAULT_STORES, most=MOST_STORES)
    return list_body([store_body(service, name) for name in page], more)


def store_body(service: Service, name: str) -> dict[str, Any]:
    """A store as OpenAI describes it.

    Raises:
      ApiError: 404 for an unknown one.
    """
    store, writer = service.stores.get(name), service.writer
    return store.body(writer.folder.attachments(name).values() if writer is not None else ())


async def search_store(service: Service, name: str, body: StoreSearchBody, user: str) -> Reply:
    """The best documents of a store for a query, or for several together.

    Raises:
      ApiError: a request that is refused.
    """
    store = service.stores.get(name)
    service = service.choose_for_store(store, body.model)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if not queries or not all(query.strip() for query in queries):
        raise bad_request("query: must not be empty", "query")
    if len(queries) > (most := service.settings.limits.items):
        raise bad_request(f"query: {len(queries)} queries, and a request may have {most}", "query")
    if body.rewrite_query:
        raise bad_request("rewrite_query: this server does not have it", "rewrite_query")
    if body.filters is not None and body.where is not None:
        raise bad_request("give filters or where, not both", "filters")
    where = body.where if body.filters is None else expression_of(body.filters)
    retrieval = retrieval_of(body.search, where, body.ranking_options)
    preparer = await service.prepare(store.current)
    assert preparer.index is not None
    vectors, tokens = None, 0
    if retrieval.search != "lexical":
        length = preparer.index.max_length
        formatted = await service.prepare(
            lambda: service.model.encoder.format(queries, body.instruction or "", length)
        )
        starts = [formatted.pool_start] * len(queries)
        pending = service.submit(EmbedRequest(formatted.ids, starts, "query", user))
        vectors, tokens = await service.result(pending), sum(map(len, formatted.ids))
    with stage("search"):
        results = await service.prepare_from_store(
            lambda: _results(preparer, queries, vectors, _number(body), retrieval)
        )
    least = retrieval.least_score
    data = [result for result in results if least is None or result["score"] >= least]
    if (trace := current()) is not None:
        trace.attributes["grit.documents"] = [result["file_id"] for result in data]
    reply = {
        "object": "vector_store.search_results.page",
        "search_query": queries,
        "data": data,
        "has_more": False,
        "next_page": None,
    }
    return Reply(reply, tokens)


def retrieval_of(
    search: str | None, where: str | None, options: RankingOptions | None, rerank: int = 0
) -> Retrieval:
    """How documents are found.

    Raises:
      ApiError: 400 for an unknown search or ranker, a filter with a mistake, or weights that say
        nothing.
    """
    if search not in (None, *SEARCHES):
        raise bad_request(f"search: expected {', '.join(SEARCHES)}, got {search!r:.40}", "search")
    weight = 0.5
    if options is not None and options.ranker not in (None, *RANKERS):
        raise bad_request(
            f"ranking_options.ranker: expected one of {', '.join(RANKERS)}, got"
            f" {options.ranker!r:.40}",
            "ranking_options",
        )
    if options is not None and options.hybrid_search is not None:
        weights = options.hybrid_search
        total = weights.embedding_weight + weights.text_weight
        if total <= 0 or search not in (None, "hybrid"):
            raise bad_request(
                "ranking_options.hybrid_search: expected weights above 0, and search 'hybrid' or"
                " none",
                "ranking_options",
            )
        search, weight = "hybrid", weights.embedding_weight / total
    try:
        return Retrieval(
            search or "dense",
            dense_weight=weight,
            where=where or "",
            rerank=rerank,
            least_score=options.score_threshold if options is not None else None,
        )
    except GritError as error:
        raise bad_request(str(error), "where") from None


def _number(body: StoreSearchBody) -> int:
    return DEFAULT_RESULTS if body.max_num_results is None else body.max_num_results


def _results(
    preparer: Preparer, queries: list[str], vectors: Any, count: int, retrieval: Retrieval
) -> list[dict[str, Any]]:
    """The best documents of all queries together, each with its best score."""
    index = preparer.index
    assert index is not None
    best: dict[int, float] = {}
    for hits in index.find(queries, vectors, count, retrieval):
        for row, score in zip(hits.rows.tolist(), hits.scores.tolist(), strict=True):
            best[row] = max(score, best.get(row, score))
    rows = sorted(best, key=lambda row: -best[row])[:count]
    return [_result(preparer, row, best[row]) for row in rows]


def _result(preparer: Preparer, row: int, score: float) -> dict[str, Any]:
    index = preparer.index
    assert index is not None
    content = [{"type": "text", "text": index.text(row)}]
    return {**source_of(index.documents[row]), "score": score, "content": content}
