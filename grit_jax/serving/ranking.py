"""Reranking and scoring by the generative head, which reads each text with its query.

All of it is log-probabilities of label tokens right after a prompt (`inference.label_scores`). To
rerank, the model is asked what `rag/rerank.py` asks after a stored document, in the layout that
reads it; the score is the probability of "yes" against "no", by the first token of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from grit_jax.inference.requests import MOST_LABELS, LabelRequest
from grit_jax.rag.rerank import DocumentTooLong, label_tokens, reading_prompts
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.generation import new_id, now
from grit_jax.serving.protocol import GenerativeScoringBody, RerankBody, ScoreBody
from grit_jax.serving.service import Service
from grit_jax.serving.store_ranking import rerank_store, score_store
from grit_jax.serving.tokens import text_ids


@dataclasses.dataclass
class Relevance:
    """Scores from 0 to 1, and the tokens that were read."""

    scores: Float[np.ndarray, " P"]
    tokens: int


async def rerank(service: Service, body: RerankBody, user: str) -> Reply:
    """Orders documents by their relevance to a query, in Cohere's and Jina's form, or in TEI's
    where the request has `texts`.

    Raises:
      ApiError: a request that is refused.
    """
    if body.store is not None:
        return await rerank_store(service, body, user)
    _only_with_store(body, ("document_ids", "rerank", "search", "where", "instruction"))
    name = service.check_model(body.model)
    is_tei = body.texts is not None
    documents = _documents(service, body)
    if not body.query.strip():
        raise bad_request("query: must not be empty", "query")
    most = body.max_tokens_per_doc
    cut = most if most is not None else 0 if body.truncate else None
    relevance = await _relevance(service, [(body.query, d) for d in documents], cut, user)
    order = np.argsort(-relevance.scores, kind="stable").tolist()
    if body.top_n is not None:
        order = order[: body.top_n]
    scores = _logits(relevance.scores) if body.raw_scores else relevance.scores
    asked = [each for each in (body.return_text, body.return_documents) if each is not None]
    shown = any(asked) if asked else not is_tei  # each form has its own default
    if is_tei:
        ranks: Any = [
            {"index": i, "score": float(scores[i])} | ({"text": documents[i]} if shown else {})
            for i in order
        ]
        return Reply(ranks, relevance.tokens)
    results = [
        {"index": i, "relevance_score": float(scores[i])}
        | ({"document": {"text": documents[i]}} if shown else {})
        for i in order
    ]
    usage = {"prompt_tokens": relevance.tokens, "total_tokens": relevance.tokens}
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    reply = {"id": new_id("rerank"), "model": name, "usage": usage, "results": results}
    return Reply(reply | {"meta": meta}, relevance.tokens)


async def score(service: Service, body: ScoreBody, user: str) -> Reply:
    """The relevance of texts to queries: one query for all texts, or one for each.

    Raises:
      ApiError: a request that is refused.
    """
    if body.store is not None:
        return await score_store(service, body, user)
    _only_with_store(body, ("document_ids",))
    name = service.check_model(body.model)
    first = body.queries if body.queries is not None else body.text_1
    second = body.documents if body.documents is not None else body.text_2
    if first is None or second is None:
        raise bad_request("give queries and documents, or text_1 and text_2", "queries")
    queries = [first] if isinstance(first, str) else first
    texts = [second] if isinstance(second, str) else second
    if not texts or len(queries) not in (1, len(texts)):
        raise bad_request(
            f"queries: expected one, or one for each of {len(texts)} documents, got {len(queries)}",
            "queries",
        )
    _check_count(service, texts, "documents")
    pairs = list(zip(queries * (len(texts) // len(queries)), texts, strict=True))
    relevance = await _relevance(service, pairs, body.max_tokens_per_doc, user)
    return _scores(name, "score", relevance.scores.tolist(), relevance.tokens)


async def generative_scoring(service: Service, body: GenerativeScoringBody, user: str) -> Reply:
    """Probabilities of label tokens right after `query item` (or `item query`), as one text.

    Raises:
      ApiError: a request that is refused.
    """
    name = service.check_model(body.model)
    if not 1 <= len(body.label_token_ids) <= MOST_LABELS:
        raise bad_request(
            f"label_token_ids: expected 1 to {MOST_LABELS}, got {len(body.label_token_ids)}",
            "label_token_ids",
        )
    _check_count(service, body.items, "items")
    prompts = await service.prepare(lambda: _joined(service, body))
    logprobs, tokens = await _labels(service, prompts, body.label_token_ids, user)
    values = np.exp(logprobs.astype(np.float64))
    if body.apply_softmax is not False:
        values = values / values.sum(axis=1, keepdims=True)
    reply = _scores(name, "generative-scoring", values[:, 0].tolist(), tokens)
    for item, row in zip(reply.body["data"], values.tolist(), strict=True):
        item["label_scores"] = row
    return reply


async def _relevance(
    service: Service, pairs: Sequence[tuple[str, str]], cut: int | None, user: str
) -> Relevance:
    """The relevance of pairs of query and text.

    Args:
      cut: tokens kept of each text; 0: as many as the model reads; None: all, or an error.
    """
    labels = await service.prepare(lambda: label_tokens(service.model))
    prompts = await service.prepare(lambda: _prompts(service, pairs, cut))
    logprobs, tokens = await _labels(service, prompts, labels, user)
    difference = (logprobs[:, 1] - logprobs[:, 0]).astype(np.float64)
    return Relevance(1 / (1 + np.exp(np.clip(difference, -700, 700))), tokens)


async def _labels(
    service: Service, prompts: Sequence[Sequence[int]], labels: Sequence[int], user: str
) -> tuple[Float[np.ndarray, "P n"], int]:
    """Log-probabilities of labels after prompts, and the tokens of all prompts."""
    tokens = sum(map(len, prompts))
    if tokens > (most := service.settings.limits.tokens):
        raise bad_request(f"{tokens} tokens, and a request may have {most}", "documents")
    pending = service.submit(LabelRequest(prompts, labels, "a document with its query", user))
    return await service.result(pending), tokens


def _prompts(
    service: Service, pairs: Sequence[tuple[str, str]], cut: int | None
) -> list[list[int]]:
    """Token ids of the judgement's prompts, texts cut."""
    try:
        return reading_prompts(service.model, pairs, cut).ids
    except DocumentTooLong as error:
        raise bad_request(
            f"{error}; shorten it or send max_tokens_per_doc",
            "documents",
            "context_length_exceeded",
        ) from None


def _joined(service: Service, body: GenerativeScoringBody) -> list[list[int]]:
    """Token ids of `query item`, or of `item query`."""
    prompts = []
    for number, item in enumerate(body.items):
        if isinstance(item, str) != isinstance(body.query, str):
            raise bad_request("items: expected texts or token ids as the query", "items")
        first, second = (item, body.query) if body.item_first else (body.query, item)
        ids = (
            text_ids(
                service,
                str(first) + str(second),
                add_special_tokens=body.add_special_tokens is not False,
            )
            if isinstance(item, str)
            else [*first, *second]
        )
        if not ids:
            raise bad_request(f"items[{number}]: must not be empty", "items")
        prompts.append(ids)
    return prompts  # type: ignore[return-value]


def _documents(service: Service, body: RerankBody) -> list[str]:
    """The texts of a request."""
    given = body.documents if body.texts is None else body.texts
    if given is None or (body.documents is not None and body.texts is not None):
        raise bad_request("give documents, or texts", "documents")
    _check_count(service, given, "documents" if body.texts is None else "texts")
    texts = []
    for number, document in enumerate(given):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise bad_request(
                f"documents[{number}]: expected a text or {{'text': ...}}", "documents"
            )
        texts.append(text)
    return texts


def _only_with_store(body: RerankBody | ScoreBody, fields: Sequence[str]) -> None:
    for name in fields:
        if getattr(body, name) is not None:
            raise bad_request(f"{name}: only with 'store', the name of a store", name)


def _check_count(service: Service, items: Sequence[Any], field: str) -> None:
    if not items:
        raise bad_request(f"{field}: the list is empty", field)
    if len(items) > (most := service.settings.limits.items):
        raise bad_request(f"{field}: {len(items)} items, and a request may have {most}", field)


def _scores(name: str, kind: str, scores: Sequence[float], tokens: int) -> Reply:
    data = [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    reply = {"id": new_id(kind), "object": "list", "created": now(), "model": name, "data": data}
    return Reply(reply | {"usage": usage}, tokens)


def _logits(scores: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """What TEI calls raw scores."""
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)
