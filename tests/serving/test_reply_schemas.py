"""Replies have the fields and types that the description names."""

from __future__ import annotations

import pytest

from grit_jax.serving.openapi import REPLIES
from grit_jax.serving.reply_schemas import ErrorReply

CHAT = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 2}
REQUESTS = [
    ("post", "/v1/embeddings", {"input": ["a", "b"]}),
    ("post", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("post", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}),
    ("post", "/v1/chat/completions", {**CHAT, "store": "docs"}),
    ("post", "/v1/completions", {"prompt": "a", "echo": True, "logprobs": 2, "max_tokens": 2}),
    ("post", "/v1/responses", {"input": "a", "max_output_tokens": 2}),
    ("post", "/v1/score", {"queries": "a", "documents": ["b"]}),
    ("post", "/generative_scoring", {"query": "a", "items": ["b"], "label_token_ids": [5, 6]}),
    ("post", "/v1/vector_stores/{name}/search", {"query": "river"}),
    ("post", "/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("post", "/detokenize", {"tokens": [5]}),
    *(("get", path, None) for method, path in REPLIES if method == "get" and "id}" not in path),
]


@pytest.mark.parametrize("method, path, body", REQUESTS, ids=lambda value: str(value)[:40])
def test_replies_are_as_described(server, method, path, body):
    """Types without conversion, and no field at the top that the description does not name."""
    kind, own = REPLIES[method, path], "tiny" if "models" in path else "docs"
    status, reply, _ = server.send(path.replace("{name}", own), body)
    assert status == 200, reply
    kind.model_validate(reply, strict=True)
    if path != "/v1/responses":  # of which only the main fields are described
        assert set(reply) <= set(kind.model_fields)


def test_errors_are_as_described(server):
    for path in ("/v1/models/nobody", "/v1/vector_stores?limit=0", "/nothing"):
        ErrorReply.model_validate(server.send(path)[1], strict=True)
