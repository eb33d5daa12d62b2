"""The events of a response, without a server."""

from __future__ import annotations

import json

import pytest

from grit_jax.serving.generation import Usage
from grit_jax.serving.response_events import ResponseForm, SearchCall
from grit_jax.serving.response_protocol import ResponseBody
from grit_jax.serving.tools import ToolUse
from grit_jax.text.tool_calls import FORMATS, CallPart

RESULT = {"file_id": "f", "filename": "n", "score": 0.5, "attributes": {}, "text": "t"}


def events(parts):
    heads = [part.decode().split("\n")[:2] for part in parts]
    bodies = [json.loads(line.removeprefix("data: ")) for _, line in heads]
    assert [head.removeprefix("event: ") for head, _ in heads] == [b["type"] for b in bodies]
    return bodies


def test_places_and_numbers():
    form = ResponseForm("tiny", ResponseBody(input="x", metadata={"k": "v"}))
    form.search = SearchCall("x", [RESULT])
    form.citations = [{"type": "file_citation", "file_id": "f", "filename": "n", "index": 0}]
    head = list(form.head())
    deltas = [*form.more("am", [], []), *form.more("ber", [], []), *form.finish()]
    body = form.body("completed", form.output("completed"), Usage(7, 2, 3))
    assert body["output"][1]["content"][0]["text"] == "amber"
    all_events = events([*head, *deltas, *form.tail(body)])
    assert [event["sequence_number"] for event in all_events] == list(range(len(all_events)))
    message_id = body["output"][1]["id"]
    for event in all_events:
        if event["type"].startswith(("response.output_text", "response.content_part")):
            assert (event["output_index"], event["content_index"]) == (1, 0)
            assert event["item_id"] == message_id
    assert all_events[-1] == {**all_events[-1], "type": "response.completed", "response": body}
    assert body["usage"]["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}
    assert body["usage"]["total_tokens"] == 9 and body["metadata"] == {"k": "v"}
    assert body["output"][0]["results"] is None  # not asked for


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_calls_of_functions(status):
    """A message where there is text, each call an item with its own arguments; what is cut off is
    not done."""
    tools = ToolUse([], FORMATS["hermes"], {"clock": {}})
    form = ResponseForm("tiny", ResponseBody(input="x"), tools=tools)
    parts = [*form.head(), *form.more("", [CallPart(0, "clock", "{")], [])]
    parts += form.more("Ok.", [CallPart(0, None, "}"), CallPart(1, "clock", '{"a"')], [])
    parts += form.finish()
    body = form.body(status, form.output(status), Usage(7, 2, 3))
    all_events = events([*parts, *form.tail(body)])
    assert [event["sequence_number"] for event in all_events] == list(range(len(all_events)))
    first, message, second = body["output"]
    assert message["content"][0]["text"] == "Ok." and message["status"] == "completed"
    assert (first["name"], first["arguments"], first["status"]) == ("clock", "{}", "completed")
    assert (second["arguments"], second["status"]) == ('{"a"', status)
    assert first["call_id"] != second["call_id"]
    of = lambda kind, index: [
        event
        for event in all_events
        if event["type"] == f"response.{kind}" and event["output_index"] == index
    ]
    for index, item in enumerate(body["output"]):
        assert [each["item"]["id"] for each in of("output_item.added", index)] == [item["id"]]
        assert [each["item"] for each in of("output_item.done", index)] == [item]
        if item["type"] == "function_call":
            deltas = [each["delta"] for each in of("function_call_arguments.delta", index)]
            assert "".join(deltas) == item["arguments"]
            done = [each["arguments"] for each in of("function_call_arguments.done", index)]
            assert done == ([item["arguments"]] if item["status"] == "completed" else [])
    silent = ResponseForm("tiny", ResponseBody(input="x"), tools=tools)
    assert len(events(silent.finish())) == 2 and silent.output("completed")[0]["type"] == "message"


def test_a_failure():
    form = ResponseForm("tiny", ResponseBody(input="x"))
    list(form.head())
    [event] = events([form.failed("out of memory")])
    assert event["type"] == "response.failed" and event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": "server_error", "message": "out of memory"}
