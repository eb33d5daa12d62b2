"""The OpenAPI description (`/openapi.json`): bodies, replies, errors and keys of every endpoint."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from grit_jax.serving import reply_schemas as replies
from grit_jax.serving.protocol import Body

STORE_FILES = "/v1/vector_stores/{name}/files"
EVENT_STREAM, PLAIN, BYTES = "text/event-stream", "text/plain", "application/octet-stream"

# Replies with status 200 by method and path.
REPLIES: dict[tuple[str, str], type[BaseModel]] = {
    ("post", "/v1/embeddings"): replies.EmbeddingReply,
    ("post", "/v1/chat/completions"): replies.ChatReply,
    ("post", "/v1/completions"): replies.CompletionReply,
    ("post", "/v1/responses"): replies.ResponseReply,
    ("get", "/v1/responses/{id}"): replies.ResponseReply,
    ("delete", "/v1/responses/{id}"): replies.Deleted,
    ("get", "/v1/responses/{id}/input_items"): replies.Page,
    ("post", "/generative_scoring"): replies.ScoreReply,
    ("get", "/v1/vector_stores"): replies.StoresReply,
    ("get", "/v1/vector_stores/{name}"): replies.StoreReply,
    ("post", "/v1/vector_stores/{name}/search"): replies.SearchReply,
    ("get", STORE_FILES): replies.Page,
    ("post", STORE_FILES): replies.StoreFileReply,
    ("get", STORE_FILES + "/{file_id}"): replies.StoreFileReply,
    ("post", STORE_FILES + "/{file_id}"): replies.StoreFileReply,
    ("delete", STORE_FILES + "/{file_id}"): replies.Deleted,
    ("get", STORE_FILES + "/{file_id}/content"): replies.ContentReply,
    ("get", "/v1/files"): replies.Page,
    ("post", "/v1/files"): replies.FileReply,
    ("get", "/v1/files/{id}"): replies.FileReply,
    ("delete", "/v1/files/{id}"): replies.Deleted,
    ("post", "/tokenize"): replies.TokenizeReply,
    ("post", "/detokenize"): replies.DetokenizeReply,
    ("get", "/tokenizer_info"): replies.TokenizerInfoReply,
    ("get", "/v1/models"): replies.ModelsReply,
    ("get", "/v1/models/{name}"): replies.ModelReply,
    ("get", "/version"): replies.VersionReply,
    ("get", "/health"): replies.StatusReply,
    ("get", "/ready"): replies.StatusReply,
    **{("post", path): replies.ScoreReply for path in ("/v1/score", "/score")},
}
RANKS = ("/v1/rerank", "/v2/rerank", "/rerank")  # a list in TEI's form, an object in the others
# Replies that are no JSON, or not always.
OTHER_TYPES: dict[tuple[str, str], str] = {
    **{
        ("post", path): EVENT_STREAM
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses")
    },
    ("get", "/metrics"): PLAIN,
    ("get", "/v1/files/{id}/content"): BYTES,
}
PAGE_QUERY = ("limit", "order", "after", "before")
QUERIES: dict[str, tuple[str, ...]] = {
    "/v1/vector_stores": PAGE_QUERY,
    "/v1/files": (*PAGE_QUERY, "purpose"),
    STORE_FILES: (*PAGE_QUERY, "filter"),
}
ERRORS = {
    400: "A field has a mistake, or the request does not fit",
    401: "No valid key",
    403: "The server does not change its stores",
    404: "A model, store, file or response is unknown",
    413: "The body is too large",
    415: "The body is of another content type",
    429: "Too many requests wait; `Retry-After` says when to come back",
    500: "An error of the server's",
    503: "Programs are being compiled, or the engine has ended",
}
WITH_BODY = (400, 404, 413, 415, 429, 503)  # of a request with a JSON body


def describe(
    app: FastAPI, bodies: Mapping[str, type[Body]], *, open_paths: Collection[str], keys: bool
) -> None:
    """Gives an application its description.

    Args:
      bodies: of POST requests, by path.
      open_paths: need no key.
      keys: the other paths need one.
    """
    app.openapi = functools.cache(  # type: ignore[method-assign]
        lambda: _description(app, bodies, open_paths, keys)
    )


def _description(
    app: FastAPI, bodies: Mapping[str, type[Body]], open_paths: Collection[str], keys: bool
) -> dict[str, Any]:
    bodies = {path.replace(":path}", "}"): kind for path, kind in bodies.items()}
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    extra = (replies.ErrorReply, replies.RerankReply, replies.TextRank)
    kinds: set[type[BaseModel]] = {*bodies.values(), *extra, *REPLIES.values()}
    pairs = [(kind, "validation") for kind in sorted(kinds, key=lambda kind: kind.__name__)]
    schemas = models_json_schema(
        pairs,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )[1]
    document["components"] = {"schemas": schemas["$defs"]}
    for kind in set(bodies.values()):  # fields that are refused unless they change nothing
        properties = schemas["$defs"][kind.__name__]["properties"]
        for name, harmless in kind.UNSERVED.items():
            if name in properties:
                properties[name] = {"enum": [None, *harmless], "default": None}
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "post" and path in bodies:
                content = {"application/json": {"schema": _ref(bodies[path])}}
                operation["requestBody"] = {"content": content, "required": True}
            operation["parameters"] = _parameters(method, path)
            errors = set(_errors(method, path, "requestBody" in operation))
            if path in open_paths:
                operation["security"] = []
            elif keys:
                errors.add(401)
            operation["responses"] = _responses(method, path, errors)
    return document


def _parameters(method: str, path: str) -> list[dict[str, Any]]:
    """Parts of the path, and what a list's query may say."""
    parts = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    names = QUERIES.get(path, ()) if method == "get" else ()
    number = {"type": "integer", "minimum": 1}
    return parts + [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": number if name == "limit" else {"type": "string"},
        }
        for name in names
    ]


def _errors(method: str, path: str, has_body: bool) -> tuple[int, ...]:
    """The statuses of errors, 401 aside."""
    writes = (403,) if "/files" in path else ()
    own = WITH_BODY if has_body else ()
    if "{" in path:
        own = (*own, 404)
    if (method == "get" and path in QUERIES) or (method == "delete" and writes):
        own = (*own, 400, 404)
    return (*own, *writes, 500)


def _responses(method: str, path: str, errors: Collection[int]) -> dict[str, Any]:
    """What an operation replies, by status."""
    schema: dict[str, Any] | None = None
    if (kind := REPLIES.get((method, path))) is not None:
        schema = _ref(kind)
    elif path in RANKS:
        ranks = {"type": "array", "items": _ref(replies.TextRank)}
        schema = {"anyOf": [_ref(replies.RerankReply), ranks]}
    content: dict[str, Any] = {} if schema is None else {"application/json": {"schema": schema}}
    if (other := OTHER_TYPES.get((method, path))) is not None:
        content[other] = {} if other == EVENT_STREAM else {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "The reply", "content": content}}
    error = {"application/json": {"schema": _ref(replies.ErrorReply)}}
    for status in sorted(errors):
        responses[str(status)] = {"description": ERRORS[status], "content": error}
    if path in ("/health", "/ready"):
        responses["503"] = {"description": "Not now", "content": content}
    return responses


def _ref(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
