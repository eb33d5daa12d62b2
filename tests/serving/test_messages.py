"""Messages to plain conversations."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.messages import plain_messages
from grit_jax.serving.protocol import Message


def test_roles_and_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [
        Message(role="developer", content="s"),
        Message(role="user", content=parts, name="Ada"),
        Message(role="assistant", content="x", refusal=None, tool_calls=None, annotations=[]),
    ]
    assert plain_messages(given) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "x"},
    ]


@pytest.mark.parametrize(
    "message, words",
    [
        (Message(role="tool", content="x"), r"messages\[0\].role"),
        (Message(role="user"), "content: expected a string"),
        (Message(role="user", content=["x"]), r"content\[0\]"),
        (Message(role="user", content=[{"type": "text"}]), r"content\[0\]"),
        (Message(role="assistant", content="x", tool_calls=[{}]), "tool_calls"),
    ],
)
def test_what_is_no_text_is_refused(message, words):
    with pytest.raises(ApiError, match=words):
        plain_messages([message])


def test_calls_and_results():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    given = [
        Message(role="user", content="x"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", tool_call_id="c", content=[{"type": "text", "text": "y"}]),
    ]
    function = {"name": "f", "arguments": {"a": 1}}
    assert plain_messages(given, tools=True)[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "y", "tool_call_id": "c", "name": "f"},
    ]
    for bad, words in (
        ({"id": "c"}, "expected {.id."),
        ({"function": {"name": "f"}}, "id: expected a string"),
        ({"id": "c", "function": {"name": "f", "arguments": "[]"}}, "expected a JSON object"),
    ):
        with pytest.raises(ApiError, match=words):
            plain_messages([Message(role="assistant", tool_calls=[bad])], tools=True)
    with pytest.raises(ApiError, match="only the assistant calls"):
        plain_messages([Message(role="user", content="x", tool_calls=[call])], tools=True)
    with pytest.raises(ApiError, match="expected the id of a call before it, got 'd'"):
        plain_messages([Message(role="tool", content="x", tool_call_id="d")], tools=True)
