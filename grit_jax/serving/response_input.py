"""The input of a response, a text or a list of items, as a conversation."""

from __future__ import annotations

from typing import Any

from grit_jax.serving.errors import bad_request
from grit_jax.serving.messages import ROLES
from grit_jax.serving.response_events import new_item_id

# Of a part of content: its fields beside the text have no effect here.
PARTS = {
    "input_text": {"type", "text", "prompt_cache_breakpoint"},
    "output_text": {"type", "text", "annotations", "logprobs", "parsed"},
}
FIELDS = {"type", "role", "content", "id", "status", "phase"}


def input_items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of an input, each with an id and its content as parts; a text is one message of
    the user.

    Raises:
      ApiError: 400 for no items.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise bad_request("input: the list is empty", "input")
    items = []
    for item in given:
        item = {"type": "message", "id": new_item_id("msg"), **item}
        if isinstance(text := item.get("content"), str):
            is_output = item.get("role") == "assistant"
            part = (
                {"type": "output_text", "annotations": []} if is_output else {"type": "input_text"}
            )
            item["content"] = [{**part, "text": text}]
        items.append(item)
    return items


def messages_of_items(items: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Items (`input_items`) as messages `{"role", "content"}` with string contents.

    Text parts of a message are joined by line breaks. The `file_search_call` items of earlier
    responses are left out: each question is answered over its own documents.

    Raises:
      ApiError: 400 for an item that is no message, an unknown role or field, or content that is no
        text.
    """
    messages = []
    for number, item in enumerate(items):
        place = f"input[{number}]"
        kind = item["type"]
        if kind == "file_search_call":
            continue
        if kind != "message":
            raise bad_request(
                f"{place}.type: expected message or file_search_call, got {kind!r:.60}", "input"
            )
        if unknown := sorted(set(item) - FIELDS):
            raise bad_request(f"{place}.{unknown[0]:.60}: unknown field", "input")
        role = item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise bad_request(
                f"{place}.role: expected one of {', '.join(ROLES)}, got {role!r:.60}", "input"
            )
        content = _text(item.get("content"), f"{place}.content")
        messages.append({"role": ROLES[role], "content": content})
    return messages


def _text(content: Any, place: str) -> str:
    if not isinstance(content, list):
        raise bad_request(
            f"{place}: expected a string or a list of text parts, got {type(content).__name__}",
            "input",
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        known = PARTS.get(kind, set()) if isinstance(kind, str) else set()
        if not known or not isinstance(part.get("text"), str) or set(part) - known:
            raise bad_request(
                f"{place}[{number}]: expected {{'type': 'input_text', 'text': ...}}, got"
                f" {f'type {kind!r:.40}' if kind else type(part).__name__}; this model reads text"
                " only",
                "input",
            )
        texts.append(part["text"])
    return "\n".join(texts)
