"""`POST /v1/embeddings`.

The texts of all requests that wait are embedded in common batches of a token budget, between the
steps of answers (`inference.pass_runner`).
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from grit_jax.inference.encoder import FormattedTexts
from grit_jax.inference.requests import EmbedRequest
from grit_jax.serving.errors import bad_request
from grit_jax.serving.protocol import EmbeddingBody
from grit_jax.serving.service import Service

QUERY_TYPES = ("query", "search_query")
DOCUMENT_TYPES = ("document", "search_document", "passage")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply and the numbers that the access log has of it."""

    body: Any
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


async def embeddings(service: Service, body: EmbeddingBody, user: str) -> Reply:
    """Embeds the inputs of a request.

    Raises:
      ApiError: a request that is refused.
    """
    name = service.check_model(body.model)
    if body.encoding_format not in (None, "float", "base64"):
        raise bad_request(
            f"encoding_format: expected 'float' or 'base64', got {body.encoding_format!r:.60}",
            "encoding_format",
        )
    width = service.model.embedding_width
    if body.dimensions is not None and body.dimensions > width:
        raise bad_request(
            f"dimensions: this model's vectors have {width}, got {body.dimensions}", "dimensions"
        )
    if body.normalize is False:
        raise bad_request("normalize: vectors are always normalised; leave it out", "normalize")
    texts = _inputs(service, body)
    instruction = _instruction(service, body)
    formatted = await service.prepare(lambda: _formatted(service, body, texts, instruction))
    tokens = sum(map(len, formatted.ids))
    if tokens > (most := service.settings.limits.tokens):
        raise bad_request(f"input: {tokens} tokens, and a request may have {most}", "input")
    starts = [formatted.pool_start] * len(texts)
    pending = service.submit(EmbedRequest(formatted.ids, starts, "input", user))
    vectors = await service.result(pending)
    if body.dimensions is not None:
        vectors = shortened(vectors, body.dimensions)
    service.metrics.embedded(len(texts), tokens)
    encoded = [_encoded(vector, body.encoding_format) for vector in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(encoded)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply({"object": "list", "model": name, "data": data, "usage": usage}, tokens)


def shortened(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The first dimensions of vectors `[N D]`, normalised again."""
    vectors = vectors[:, :dimensions]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float32).tiny)


def _inputs(service: Service, body: EmbeddingBody) -> Sequence[str] | Sequence[list[int]]:
    """The inputs as a list of texts or a list of token ids."""
    given: Any = body.input
    single = isinstance(given, str) or (given and isinstance(given[0], int))
    texts = [given] if single else given
    if not texts:
        raise bad_request("input: the list is empty", "input")
    if len(texts) > (most := service.settings.limits.items):
        raise bad_request(f"input: {len(texts)} items, and a request may have {most}", "input")
    for number, text in enumerate(texts):
        if not len(text):
            place = "input" if single else f"input[{number}]"
            raise bad_request(f"{place}: must not be empty", "input")
    return texts


def _instruction(service: Service, body: EmbeddingBody) -> str:
    """What the texts are embedded for."""
    given = [name for name in ("instruction", "prompt_name") if getattr(body, name) is not None]
    if len(given) > 1:
        raise bad_request("give instruction or prompt_name, not both", "prompt_name")
    kinds = (*QUERY_TYPES, *DOCUMENT_TYPES)
    if body.input_type is not None and body.input_type not in kinds:
        raise bad_request(
            f"input_type: expected one of {', '.join(kinds)}, got {body.input_type!r:.60}",
            "input_type",
        )
    if body.input_type in DOCUMENT_TYPES:
        if body.instruction:
            raise bad_request(
                f"instruction: documents are embedded without one; leave it out beside input_type"
                f" {body.input_type!r}",
                "instruction",
            )
        return ""
    if body.prompt_name is not None:
        prompts = service.model.prompts
        if body.prompt_name not in prompts:
            known = ", ".join(prompts) or "none"
            raise bad_request(
                f"prompt_name: this model has no prompt {body.prompt_name!r:.60}; it has {known}",
                "prompt_name",
            )
        return prompts[body.prompt_name]
    if body.instruction is not None:
        return body.instruction
    return service.settings.instruction if body.input_type in QUERY_TYPES else ""


def _formatted(
    service: Service,
    body: EmbeddingBody,
    texts: Sequence[str] | Sequence[list[int]],
    instruction: str,
) -> FormattedTexts:
    """Token ids of the inputs in the embedding format."""
    encoder, context = service.model.encoder, service.model.config.context_length
    cut = body.truncate_prompt_tokens
    length = context if cut in (None, -1) else cut
    assert length is not None
    if length > context or length < 1:
        raise bad_request(
            f"truncate_prompt_tokens: expected -1 or 1 to {context}, this model's context, got"
            f" {cut}",
            "truncate_prompt_tokens",
        )
    if isinstance(texts[0], str):
        formatted = encoder.format(cast(Sequence[str], texts), instruction, length)
    else:
        size, lists = service.model.config.vocab_size, cast(Sequence[list[int]], texts)
        for number, ids in enumerate(lists):
            if max(ids) >= size:
                raise bad_request(
                    f"input[{number}]: token {max(ids)} is outside the vocabulary (0 to"
                    f" {size - 1})",
                    "input",
                )
        formatted = encoder.format_ids(lists, instruction, length)
    if cut is None and formatted.truncated:
        raise bad_request(
            f"input[{formatted.truncated[0]}]: longer than this model's context of {context}"
            " tokens; shorten it, or send truncate_prompt_tokens: -1 to have it cut",
            "input",
            "context_length_exceeded",
        )
    return formatted


def _encoded(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    vector = np.asarray(vector, "<f4")
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()
