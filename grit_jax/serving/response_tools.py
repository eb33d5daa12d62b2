"""The tools of a response: `file_search` over a store, and functions that the model may call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.serving.errors import bad_request
from grit_jax.serving.file_search import file_search_of
from grit_jax.serving.response_protocol import FileSearchTool, ResponseBody
from grit_jax.serving.tools import ToolRequest, allowed_functions, choice_of

TYPES = ("file_search", "function")
FIELDS = {"type", "name", "description", "parameters", "strict"}
# Of OpenAI's, and not served: refused unless they say what is done anyway.
UNSERVED = {"async", "defer_loading", "allowed_callers", "output_schema"}


@dataclasses.dataclass(frozen=True)
class ResponseTools:
    """What a request says of its tools.

    Attributes:
      search: the search that is made; None: none.
      functions: that the answer may call, or that were called before.
    """

    search: FileSearchTool | None
    functions: ToolRequest


def response_tools(body: ResponseBody, messages: Sequence[Mapping[str, Any]]) -> ResponseTools:
    """The tools of a request whose conversation is known.

    The search is made whenever there is one: it fulfils the choice "required", and functions are
    optional beside it.

    Raises:
      ApiError: 400 for an unknown tool, a field with a mistake, or a choice that there is not.
    """
    searches: list[tuple[str, Mapping[str, Any]]] = []
    functions: list[tuple[str, Mapping[str, Any]]] = []
    for number, tool in enumerate(body.tools or []):
        place, kind = f"tools[{number}]", tool.get("type")
        if kind not in TYPES:
            raise bad_request(
                f"{place}.type: expected {' or '.join(TYPES)}, got {kind!r:.60}; this endpoint has"
                " no other tool",
                "tools",
            )
        (searches if kind == "file_search" else functions).append((place, tool))
    if len(searches) > 1:
        raise bad_request("tools: expected one file_search at most", "tools")
    functions = [(place, _function(place, tool)) for place, tool in functions]
    search = file_search_of(*searches[0]) if searches else None
    choice: Any = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        allowed = allowed if isinstance(allowed, list) else []
        if {"type": "file_search"} not in allowed or search is None:
            search = None
        else:
            allowed = [each for each in allowed if each != {"type": "file_search"}]
        if allowed or search is None:
            functions = allowed_functions(functions, allowed)
        else:
            functions = []
        choice = choice.get("mode", "auto")
    if choice == {"type": "file_search"}:
        if search is None:
            raise bad_request("tool_choice: there is no file_search among the tools", "tool_choice")
        functions, choice = [], "auto"
    if isinstance(choice, dict) and choice.get("type") != "function":
        choice = str(choice)
    chosen = choice_of(
        choice, "{'type': 'function', 'name'}, {'type': 'file_search'}, {'type': 'allowed_tools'}"
    )
    if chosen == "none" or isinstance(chosen, tuple):
        search = None
    elif chosen == "required" and search is not None:
        chosen = "auto"
    form = (body.text.format if body.text is not None else None) or {}
    request = ToolRequest(
        functions,
        chosen,
        body.parallel_tool_calls is not False,
        any(message["role"] == "tool" or message.get("tool_calls") for message in messages),
        (str(form.get("type", "text")), "text.format"),
    )
    return ResponseTools(search, request)


def _function(place: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as chat has it."""
    for name, value in tool.items():
        if name in UNSERVED and value in (None, False, []):
            continue
        if name not in FIELDS:
            raise bad_request(f"{place}.{name:.60}: this server does not have it", "tools")
    return {name: value for name, value in tool.items() if name in FIELDS - {"type"}}
