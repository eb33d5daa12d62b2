"""Answers in a form parse and validate, greedy or drawn, alone and in company."""

from __future__ import annotations

import concurrent.futures
import json

import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["river", "st\u00f6ne"]},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 3,
        },
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}


def check(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"name", "kind", "sizes"}
    assert isinstance(value["name"], str) and len(value["name"]) <= 6
    assert value["kind"] in ("river", "st\u00f6ne") and len(value["sizes"]) <= 3
    assert all(isinstance(size, int) and 0 <= size <= 99 for size in value["sizes"])


def test_answers_validate(server, openai_client):
    """Beside answers without a form, which stay what they are alone."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    plain = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 30, "temperature": 0}
    alone = server.post("/v1/chat/completions", **plain)
    send = lambda **more: server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "A stone?"}],
        max_tokens=120,
        response_format=form,
        **more,
    )
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        beside = [pool.submit(server.post, "/v1/chat/completions", **plain) for _ in range(2)]
        drawn = [pool.submit(send, temperature=1, seed=seed, n=2) for seed in range(3)]
        greedy = pool.submit(send, temperature=0).result()
    texts = []
    for reply in [greedy, *(each.result() for each in drawn)]:
        for choice in reply["choices"]:
            assert choice["finish_reason"] == "stop"
            texts.append(choice["message"]["content"])
            check(texts[-1])
    assert len(set(texts)) > 4
    assert all(each.result()["choices"] == alone["choices"] for each in beside)
    chunks = openai_client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "A stone?"}],
        max_tokens=120,
        temperature=0,
        response_format=form,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == texts[0]


def test_a_json_object(server):
    reply = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "A stone?"}],
        response_format={"type": "json_object"},
        max_tokens=6,
        temperature=0,
    )
    assert reply["choices"][0]["message"]["content"].startswith("{")


NOTHING = {"$defs": {"a": {"$ref": "#/$defs/a"}}}  # what refers to itself alone


def test_a_form_that_cannot_go_on_ends_its_own_answer_alone(server):
    """At the first token, and in the middle; whole and as a stream."""
    plain = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 40, "temperature": 0}
    alone = server.post("/v1/chat/completions", **plain)
    form = lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    inside = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(server.post, "/v1/chat/completions", **plain) for _ in range(3)]
        for schema in ({"$ref": "#"}, {"$ref": "#/$defs/a"} | NOTHING, inside | NOTHING):
            fields = plain | {"response_format": form(schema)}
            status, error = server.error("/v1/chat/completions", **fields)
            assert status == 400 and error["param"] == "response_format", error
        status, text, _ = server.send("/v1/chat/completions", fields | {"stream": True})
        assert status in (200, 400) and "cannot go on" in str(text)
    assert all(each.result()["choices"] == alone["choices"] for each in beside)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"response_format": {"type": "xml"}}, "expected text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "expected a JSON schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_a_bad_form_is_refused(server, change, words):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    status, error = server.error("/v1/chat/completions", **(body | change))
    assert status == 400 and words in error["message"], error
