"""The input of a response as a conversation."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.response_input import input_items, messages_of_items

CALL = {"type": "file_search_call", "id": "fs_1", "queries": ["x"], "status": "completed"}


def test_items_have_ids_and_parts():
    [item] = input_items("amber")
    assert item.pop("id").startswith("msg_")
    content = [{"type": "input_text", "text": "amber"}]
    assert item == {"type": "message", "role": "user", "content": content}
    items = input_items([{"role": "assistant", "content": "x", "id": "msg_1"}, CALL])
    assert items[0]["id"] == "msg_1"
    assert items[0]["content"] == [{"type": "output_text", "annotations": [], "text": "x"}]
    assert items[1] == CALL


def test_messages_of_all_roles():
    content = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    answer = [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]
    given = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": content},
        CALL,
        {"role": "assistant", "content": answer, "status": "completed", "id": "msg_1"},
    ]
    assert messages_of_items(input_items(given)) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_calls_and_their_results():
    call = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"a": 1}'}
    other = {**call, "call_id": "c2", "arguments": ""}
    result = {"type": "function_call_output", "call_id": "c1", "output": "12:00"}
    parts = {**result, "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]}
    said = {"role": "assistant", "content": "I ask."}
    items = input_items([{"role": "user", "content": "x"}, said, call, other, result])
    assert items[2]["id"].startswith("fc_") and items[4]["id"].startswith("fco_")
    calls = [
        {"id": id, "type": "function", "function": {"name": "clock", "arguments": arguments}}
        for id, arguments in (("c1", {"a": 1}), ("c2", {}))
    ]
    told = {"role": "tool", "content": "12:00", "tool_call_id": "c1", "name": "clock"}
    assert messages_of_items(items) == [
        {"role": "user", "content": "x"},
        {**said, "tool_calls": calls},
        told,
    ]
    alone = messages_of_items(input_items([other, parts]))
    assert alone[0] == {"role": "assistant", "content": "", "tool_calls": calls[1:]}
    assert alone[1]["content"] == "noon"
    for wrong, words in (
        ([result], "input[0].call_id: expected that of a function_call before it"),
        ([{**call, "call_id": None}], "input[0].call_id: expected a text"),
        ([{**call, "name": 3}], "input[0].name: expected a text"),
        ([{**call, "arguments": "[1]"}], "input[0].arguments: expected a JSON object"),
        ([{**call, "song": 1}], "input[0].song: unknown field"),
        ([call, {**result, "output": 3}], "input[1].output: expected a string or a list"),
        ([{"type": ["x"]}], "input[0].type: expected message, function_call"),
    ):
        with pytest.raises(ApiError) as error:
            messages_of_items(input_items(wrong))
        assert words in error.value.message
    # As the official client sends an answer back.
    assert messages_of_items(input_items([{**call, "namespace": None, "async": None}]))


@pytest.mark.parametrize("content", [None, 3, [3], [{"type": "input_text"}], [{"type": ["x"]}]])
def test_content_that_is_no_text(content):
    with pytest.raises(ApiError, match=r"input\[0\].content"):
        messages_of_items(input_items([{"role": "user", "content": content}]))
