"""The body of a response's request."""

from __future__ import annotations

import json

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.protocol import parse
from grit_jax.serving.response_protocol import ResponseBody


def test_fields_without_effect():
    given = {"input": "x", "metadata": {"a": "b"}, "store": False, "tools": [{"type": "t"}]}
    body = parse(ResponseBody, json.dumps(given | {"max_tool_calls": 3}).encode())
    assert body.ignored() == ["max_tool_calls"] and not body.is_stored
    assert parse(ResponseBody, b'{"input": "x", "truncation": "disabled"}').is_stored


@pytest.mark.parametrize("field", ["background", "conversation", "prompt", "context_management"])
def test_what_is_not_served(field):
    with pytest.raises(ApiError, match=f"{field}: this server does not have it"):
        parse(ResponseBody, json.dumps({"input": "x", field: {"id": "y"}}).encode())
