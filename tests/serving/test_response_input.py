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


@pytest.mark.parametrize("content", [None, 3, [3], [{"type": "input_text"}], [{"type": ["x"]}]])
def test_content_that_is_no_text(content):
    with pytest.raises(ApiError, match=r"input\[0\].content"):
        messages_of_items(input_items([{"role": "user", "content": content}]))
