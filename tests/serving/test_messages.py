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
