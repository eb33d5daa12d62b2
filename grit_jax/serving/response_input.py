"""The input of a response, a text or a list of items, as a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.serving.errors import bad_request
from grit_jax.serving.messages import ROLES, arguments_object
from grit_jax.serving.response_events import new_item_id

# Of a part of content: its fields beside the text have no effect here.
PARTS = {
    "input_text": {"type", "text", "prompt_cache_breakpoint"},
    "output_text": {"type", "text", "annotations", "logprobs", "parsed"},
}
# Of items, by their types.
FIELDS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status", "parsed_arguments"},
    "function_call_output": {"type", "id", "call_id", "output", "name", "status"},
}
# Fields that the official client sends back with these, and that say nothing.
NOTHING = {
    "function_call": {"async", "caller", "namespace"},
    "function_call_output": {"caller", "namespace"},
}
# The beginnings of ids.
PREFIXES = {"function_call": "fc", "function_call_output": "fco"}


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
        prefix = PREFIXES.get(str(item.get("type")), "msg")
        given_fields = {
            name: value for name, value in item.items() if (name, value) != ("id", None)
        }
        item = {"type": "message", "id": new_item_id(prefix), **given_fields}
        if isinstance(text := item.get("content"), str):
            is_output = item.get("role") == "assistant"
            part = (
                {"type": "output_text", "annotations": []} if is_output else {"type": "input_text"}
            )
            item["content"] = [{**part, "text": text}]
        items.append(item)
    return items


def messages_of_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items (`input_items`) as messages `{"role", "content"}` with string contents.

    Text parts of a message are joined by line breaks. Calls of functions belong to the assistant's
    message before them, or to one without content; their results are messages of the role `tool`,
    in the form that chat templates read. The `file_search_call` items of earlier responses are left
    out: each question is answered over its own documents.

    Raises:
      ApiError: 400 for an item of another type, an unknown role or field, content that is no text,
        a call that has a mistake, or a result without its call.
    """
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of functions, by the ids of their calls
    for number, item in enumerate(items):
        place, kind = f"input[{number}]", item["type"]
        if kind == "file_search_call":
            continue
        if not isinstance(kind, str) or kind not in FIELDS:
            raise bad_request(
                f"{place}.type: expected {', '.join(FIELDS)} or file_search_call, got {kind!r:.60}",
                "input",
            )
        known = FIELDS[kind]
        if unknown := sorted(set(item) - known):
            name = unknown[0]
            if name not in NOTHING.get(kind, ()) or item[name] not in (None, False):
                raise bad_request(f"{place}.{name:.60}: unknown field", "input")
        if kind == "function_call":
            call = _call(item, place)
            names[call["id"]] = call["function"]["name"]
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            called = item.get("call_id")
            if not isinstance(called, str) or called not in names:
                raise bad_request(
                    f"{place}.call_id: expected that of a function_call before it, got"
                    f" {called!r:.80}",
                    "input",
                )
            output = item.get("output")
            content = output if isinstance(output, str) else _text(output, f"{place}.output")
            result = {"tool_call_id": called, "name": names[called]}
            messages.append({"role": "tool", "content": content, **result})
        else:
            role = item.get("role")
            if not isinstance(role, str) or role not in ROLES:
                raise bad_request(
                    f"{place}.role: expected one of {', '.join(ROLES)}, got {role!r:.60}", "input"
                )
            content = _text(item.get("content"), f"{place}.content")
            messages.append({"role": ROLES[role], "content": content})
    return messages


def _call(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A call of a function in the form that chat templates read."""
    for field in ("call_id", "name"):
        if not isinstance(item.get(field), str) or not item[field]:
            raise bad_request(
                f"{place}.{field}: expected a text, got {item.get(field)!r:.60}", "input"
            )
    arguments = arguments_object(item.get("arguments"), f"{place}.arguments", "input")
    function = {"name": item["name"], "arguments": arguments}
    return {"id": item["call_id"], "type": "function", "function": function}


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
