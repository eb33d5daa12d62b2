"""The messages of a request as plain conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from grit_jax.serving.errors import bad_request
from grit_jax.serving.protocol import Message

# Of messages that a client sends back: refused if they say something.
_UNSERVED = ("audio", "function_call")
_TOOLS = ("tool_calls", "tool_call_id")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def plain_messages(messages: Sequence[Message], *, tools: bool = False) -> list[dict[str, Any]]:
    """Messages as `{"role", "content"}` with string contents.

    A list of text parts is joined by line breaks, as in vLLM. A developer's message is a system
    message. With `tools` there may be calls of functions and their results, in the form that chat
    templates read: arguments as objects, and the function's name beside its result.

    Raises:
      ApiError: 400 for no messages, an unknown role, content that is no text, calls that have a
        mistake, or a result without its call.
    """
    if not messages:
        raise bad_request("messages: the list is empty", "messages")
    roles = [*ROLES, "tool"] if tools else [*ROLES]
    plain: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of functions, by the ids of their calls
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        for name in _UNSERVED if tools else (*_UNSERVED, *_TOOLS):
            if getattr(message, name):
                raise bad_request(f"{place}.{name}: this server does not have it", "messages")
        if message.role not in roles:
            raise bad_request(
                f"{place}.role: expected one of {', '.join(roles)}, got {message.role!r:.60}",
                "messages",
            )
        content = message.content
        if content is None and message.tool_calls:
            content = ""
        one: dict[str, Any] = {
            "role": ROLES.get(message.role, message.role),
            "content": _text(content, f"{place}.content"),
        }
        if message.role == "tool":
            called = message.tool_call_id
            if not isinstance(called, str) or called not in names:
                raise bad_request(
                    f"{place}.tool_call_id: expected the id of a call before it, got"
                    f" {called!r:.80}",
                    "messages",
                )
            one |= {"tool_call_id": called, "name": names[called]}
        elif message.tool_calls:
            if message.role != "assistant":
                raise bad_request(f"{place}.tool_calls: only the assistant calls", "messages")
            one["tool_calls"] = _calls(message.tool_calls, f"{place}.tool_calls")
            names |= {call["id"]: call["function"]["name"] for call in one["tool_calls"]}
        plain.append(one)
    return plain


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Calls of functions with their arguments as objects."""
    if not isinstance(calls, list):
        raise bad_request(f"{place}: expected a list", "messages")
    plain = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise bad_request(
                f"{place}[{number}]: expected {{'id', 'type': 'function', 'function': {{'name',"
                " 'arguments'}}",
                "messages",
            )
        if not isinstance(call.get("id"), str):
            raise bad_request(f"{place}[{number}].id: expected a string", "messages")
        whole = {
            "name": name,
            "arguments": arguments_object(
                function.get("arguments"), f"{place}[{number}].function.arguments", "messages"
            ),
        }
        plain.append({"id": call["id"], "type": "function", "function": whole})
    return plain


def arguments_object(given: Any, place: str, param: str) -> dict[str, Any]:
    """The arguments of a call, JSON text or nothing, as an object.

    Raises:
      ApiError: 400 for anything else.
    """
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str | None) else given
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_request(
            f"{place}: expected a JSON object as text, got {given!r:.80}",
            param,
        )
    return arguments


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
