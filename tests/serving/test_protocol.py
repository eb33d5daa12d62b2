"""Bodies of requests: strict, and errors that name the field."""

from __future__ import annotations

import json

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.protocol import ChatBody, EmbeddingBody, StoreSearchBody, parse
from grit_jax.serving.response_protocol import ResponseBody

CHAT = {"messages": [{"role": "user", "content": "x"}]}


def refusal(kind, **fields) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(kind, json.dumps(fields).encode())
    assert caught.value.status == 400
    return caught.value


def test_nothing_is_converted():
    for value in ("1", 1.5, True, [1]):
        assert refusal(EmbeddingBody, input="x", dimensions=value).param == "dimensions"
    assert refusal(ChatBody, **CHAT, stream="true").param == "stream"
    assert parse(ChatBody, json.dumps(CHAT | {"temperature": 1}).encode()).temperature == 1.0


def test_unknown_missing_and_unserved_fields():
    unknown = refusal(ChatBody, **CHAT, max_token=3)
    assert unknown.code == "unknown_parameter" and "did you mean 'max_tokens'" in unknown.message
    inside = refusal(ChatBody, messages=[{"role": "user", "contents": "x"}])
    assert "messages.0.contents: unknown field" in inside.message
    assert refusal(ChatBody).code == "missing_required_parameter"
    assert refusal(ChatBody, **CHAT, functions=[{}]).param == "functions"
    assert parse(ChatBody, json.dumps(CHAT | {"tools": [], "tool_choice": "none"}).encode())


@pytest.mark.parametrize("value", ["1e999", '{"a": [-1e999]}', '[{"maximum": 1e999}]'])
@pytest.mark.parametrize(
    "kind, body, param",
    [
        (ChatBody, '{"messages": [{"role": "user", "content": VALUE}]}', "messages"),
        (ChatBody, '{"messages": [], "metadata": VALUE}', "metadata"),
        (ResponseBody, '{"input": [{"content": VALUE}]}', "input"),
        (ResponseBody, '{"input": "x", "text": {"format": {"type": VALUE}}}', "text"),
        (StoreSearchBody, '{"query": "x", "filters": VALUE}', "filters"),
    ],
)
def test_a_number_that_becomes_infinite_is_refused(kind, body, param, value):
    """Replies repeat parts of requests, and JSON has no infinity."""
    with pytest.raises(ApiError, match="a number in it is too large") as caught:
        parse(kind, body.replace("VALUE", value).encode())
    assert caught.value.status == 400 and caught.value.param == param
    parse(kind, body.replace("VALUE", value.replace("1e999", "1e300")).encode())


def test_fields_without_effect():
    body = parse(ChatBody, json.dumps(CHAT | {"store": False, "metadata": None}).encode())
    assert body.ignored() == ["store"]
