"""The events of a response, without a server."""

from __future__ import annotations

import json

from grit_jax.serving.generation import Usage
from grit_jax.serving.response_events import ResponseForm, SearchCall
from grit_jax.serving.response_protocol import ResponseBody

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
    deltas = [form.delta("am", []), form.delta("ber", [])]
    body = form.body("completed", form.output("amber", [], "completed"), Usage(7, 2, 3))
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


def test_a_failure():
    form = ResponseForm("tiny", ResponseBody(input="x"))
    list(form.head())
    [event] = events([form.failed("out of memory")])
    assert event["type"] == "response.failed" and event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": "server_error", "message": "out of memory"}
