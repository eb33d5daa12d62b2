"""The messages of a request as plain conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grit_jax.serving.errors import bad_request
from grit_jax.serving.protocol import Message

# Of messages that a client sends back: without effect, or refused if they say something.
_UNSERVED = ("audio", "tool_calls", "tool_call_id", "function_call")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as `{"role", "content"}` with string contents.

    A list of text parts is joined by line breaks, as in vLLM. A developer's message is a system
    message.

    Raises:
      ApiError: 400 for no messages, an unknown role, or content that is no text.
    """
    if not messages:
        raise bad_request("messages: the list is empty", "messages")
    plain = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        for name in _UNSERVED:
            if getattr(message, name):
                raise bad_request(f"{place}.{name}: this server does not have it", "messages")
        if message.role not in ROLES:
            raise bad_request(
                f"{place}.role: expected one of {', '.join(ROLES)}, got {message.role!r:.60}",
                "messages",
            )
        content = _text(message.content, f"{place}.content")
        plain.append({"role": ROLES[message.role], "content": content})
    return plain


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(
            f"{place}: expected a string or a list of text parts, got {type(content).__name__}",
            "messages",
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad_request(
                f"{place}[{number}]: expected {{'type': 'text', 'text': ...}}, got"
                f" {f'type {kind!r:.40}' if kind else type(part).__name__}; this model reads text"
                " only",
                "messages",
            )
        texts.append(part["text"])
    return "\n".join(texts)
