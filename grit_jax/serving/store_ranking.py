"""Reranking documents of a store: the model judges them from their stored records, as `grit ask
--rerank` does, so that no document is read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from grit_jax.rag.prepared import JudgedDocuments
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.generation import new_id, now
from grit_jax.serving.protocol import RerankBody, ScoreBody
from grit_jax.serving.service import Service
from grit_jax.serving.sources import source_of
from grit_jax.serving.vector_stores import retrieval_of

DEFAULT_CANDIDATES = 20  # of a search, where the request says nothing
# Fields of documents that a request brings itself.
READ_FIELDS = ("documents", "texts", "max_tokens_per_doc", "truncate", "raw_scores", "return_text")
SEARCH_FIELDS = ("rerank", "search", "where", "instruction")


async def rerank_store(service: Service, body: RerankBody, user: str) -> Reply:
    """Orders documents of a store by their relevance to a query: those that are named, or the
    candidates of a search.

    Raises:
      ApiError: a request that is refused.
    """
    _refuse(body, READ_FIELDS, "not with 'store', whose documents are read from their records")
    if body.document_ids is not None:
        _refuse(body, SEARCH_FIELDS, "not with 'document_ids', which are not searched for")
    service, judged = await _judged(service, body, body.query, body.document_ids, user)
    order = judged.documents[: body.top_n] if body.top_n is not None else judged.documents
    shown = body.return_documents is not False
    results = []
    for document in order:
        result: dict[str, Any] = {
            "index": judged.places[document.id],
            "relevance_score": document.score,
            "document_id": document.id,
        }
        if document.search_score is not None:
            result["search_score"] = document.search_score
        if shown:
            line = judged.lines[document.id]
            result["document"] = {"text": document.text, **source_of(line)}
        results.append(result)
    usage = _usage(judged)
    reply = {"id": new_id("rerank"), "model": service.name, "usage": usage, "results": results}
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    reply |= {"meta": meta, "grit": {"warnings": judged.warnings}}
    return Reply(reply, judged.tokens, judged.cached_tokens)


async def score_store(service: Service, body: ScoreBody, user: str) -> Reply:
    """The relevance of named documents of a store to a query, in their order.

    Raises:
      ApiError: a request that is refused.
    """
    _refuse(
        body,
        ("documents", "text_1", "text_2", "max_tokens_per_doc"),
        "not with 'store', whose documents are read from their records",
    )
    if body.document_ids is None or not isinstance(body.queries, str):
        raise bad_request("with 'store', give queries (one text) and document_ids", "document_ids")
    service, judged = await _judged(service, body, body.queries, body.document_ids, user)
    scores = {document.id: document.score for document in judged.documents}
    data = [
        {"index": index, "object": "score", "score": scores[id], "document_id": id}
        for index, id in enumerate(body.document_ids)
    ]
    reply = {"id": new_id("score"), "object": "list", "created": now(), "model": service.name}
    reply |= {"data": data, "usage": _usage(judged), "grit": {"warnings": judged.warnings}}
    return Reply(reply, judged.tokens, judged.cached_tokens)


async def _judged(
    service: Service,
    body: RerankBody | ScoreBody,
    query: str,
    ids: Sequence[str] | None,
    user: str,
) -> tuple[Service, JudgedDocuments]:
    """The service with the model of the store, and the documents by their relevance."""
    assert body.store is not None
    store = service.stores.get(body.store, "store")
    service = service.choose_for_store(store, body.model)
    if not query.strip():
        raise bad_request("query: must not be empty", "query")
    limits = service.settings.limits
    if ids is not None and not 1 <= len(ids) <= limits.items:
        raise bad_request(f"document_ids: expected 1 to {limits.items}", "document_ids")
    if ids is not None and len(set(ids)) < len(ids):
        raise bad_request("document_ids: an id is there twice", "document_ids")
    retrieval, instruction = retrieval_of(None, None, None), ""
    if isinstance(body, RerankBody):
        count = body.rerank or max(DEFAULT_CANDIDATES, body.top_n or 0)
        retrieval = retrieval_of(body.search, body.where, None, min(count, limits.items))
        instruction = body.instruction or ""
    service.check_ready()
    preparer = await service.prepare(store.current)
    judged = await service.prepare_from_store(
        lambda: preparer.judge(
            query,
            ids,
            retrieval=retrieval,
            instruction=instruction,
            most_tokens=limits.tokens,
            user=user,
        )
    )
    warnings = [store.named(warning) for warning in judged.warnings]
    return service, dataclasses.replace(judged, warnings=warnings)


def _refuse(body: RerankBody | ScoreBody, fields: Sequence[str], reason: str) -> None:
    for name in fields:
        if getattr(body, name) is not None:
            raise bad_request(f"{name}: {reason}", name)


def _usage(judged: JudgedDocuments) -> dict[str, Any]:
    return {
        "prompt_tokens": judged.tokens,
        "total_tokens": judged.tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": judged.cached_tokens},
    }
