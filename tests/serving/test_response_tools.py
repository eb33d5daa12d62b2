"""The tools of a response: which search is made, and which functions may be called."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.response_protocol import ResponseBody
from grit_jax.serving.response_tools import response_tools

SEARCH = {"type": "file_search", "vector_store_ids": ["docs"]}
CLOCK = {"type": "function", "name": "clock", "strict": True, "parameters": None}
STONE = {"type": "function", "name": "stone", "description": "Names one.", "parameters": {}}
MESSAGES = [{"role": "user", "content": "amber?"}]


def of(messages=MESSAGES, **fields):
    """Whether there is a search, the functions' names, and the choice."""
    tools = response_tools(ResponseBody(input="x", **fields), messages)
    names = [function["name"] for _, function in tools.functions.functions]
    return tools.search is not None, names, tools.functions.choice


def allowed(mode, *tools):
    return {"type": "allowed_tools", "mode": mode, "tools": [*tools]}


def test_choices():
    assert of() == of(tools=[]) == (False, [], "auto")
    every = [STONE, SEARCH, CLOCK]
    names = ["stone", "clock"]
    for choice, expected in (
        (None, (True, names, "auto")),
        ("auto", (True, names, "auto")),
        ("none", (False, names, "none")),
        ("required", (True, names, "auto")),  # the search is the call that is required
        ({"type": "file_search"}, (True, [], "auto")),
        ({"type": "function", "name": "clock"}, (False, names, ("clock",))),
        (allowed("auto", {"type": "function", "name": "clock"}), (False, ["clock"], "auto")),
        (allowed("required", STONE, {"type": "file_search"}), (True, ["stone"], "auto")),
        (allowed("required", CLOCK), (False, ["clock"], "required")),
        (allowed("auto", {"type": "file_search"}), (True, [], "auto")),
    ):
        assert of(tools=every, tool_choice=choice) == expected, choice
    assert of(tools=[CLOCK], tool_choice="required") == (False, ["clock"], "required")


def test_functions_as_chat_has_them():
    tools = response_tools(ResponseBody(input="x", tools=[SEARCH, CLOCK]), MESSAGES)
    [(place, function)] = tools.functions.functions
    assert place == "tools[1]"
    assert function == {"name": "clock", "strict": True, "parameters": None}
    assert tools.functions.parallel and not tools.functions.has_calls
    told = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [{}]}]
    body = ResponseBody(input="x", parallel_tool_calls=False)
    again = response_tools(body, told).functions
    assert again.has_calls and not again.parallel


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tools": [SEARCH, SEARCH]}, "one file_search at most"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type: expected file_search or function"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{**CLOCK, "output_schema": {"type": "string"}}]}, "tools[0].output_schema"),
        ({"tools": [{**SEARCH, "rerank": 0}]}, "tools[0].rerank"),
        ({"tools": [CLOCK], "tool_choice": {"type": "file_search"}}, "there is no file_search"),
        ({"tools": [CLOCK], "tool_choice": allowed("auto", STONE)}, "expected allowed_tools"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice: expected 'auto'"),
        ({"tools": [CLOCK], "tool_choice": {"type": "mcp", "name": "x"}}, "tool_choice: expected"),
    ],
)
def test_what_is_refused(fields, words):
    with pytest.raises(ApiError) as error:
        of(**fields)
    assert words in error.value.message


def test_fields_that_say_what_is_done_anyway():
    plain = {**CLOCK, "defer_loading": False, "async": None, "allowed_callers": []}
    assert of(tools=[plain])[1] == ["clock"]
