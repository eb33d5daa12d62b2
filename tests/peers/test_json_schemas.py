"""Answers held to 200 drawn JSON schemas parse, and validate by another library's validator."""

from __future__ import annotations

import concurrent.futures
import json

import pytest
from json_schemas import draw_schema
from live_server import live_server

from grit_jax.serving.settings import ServeSettings

jsonschema_rs = pytest.importorskip("jsonschema_rs")
pytestmark = pytest.mark.peers
SCHEMAS = 200


def test_answers_parse_and_validate(tiny_model):
    """At temperature 1, of a model with random weights, many at a time; an answer that `max_tokens`
    ends says so, and there are few of them."""
    settings = ServeSettings("tiny", slots=8, context=512, warm_up=False)
    with live_server(tiny_model, settings) as server:

        def ask(seed: int):
            form = {"name": "x", "schema": draw_schema(seed), "strict": True}
            return server.send(
                "/v1/chat/completions",
                {
                    "messages": [{"role": "user", "content": "Go on"}],
                    "response_format": {"type": "json_schema", "json_schema": form},
                    "temperature": 1,
                    "seed": seed,
                    "max_tokens": 450,
                },
            )

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(ask, range(SCHEMAS)))
    ended, texts, problems = 0, set(), []
    for seed, (status, reply, _) in enumerate(replies):
        if status != 200:
            problems.append((seed, reply))
            continue
        [choice] = reply["choices"]
        if choice["finish_reason"] == "length":
            ended += 1
            continue
        assert choice["finish_reason"] == "stop"
        text = choice["message"]["content"]
        try:
            value = json.loads(text)
            jsonschema_rs.validate(draw_schema(seed), value)
            texts.add(text)
        except (ValueError, jsonschema_rs.ValidationError) as error:
            problems.append((seed, text, str(error)[:300]))
    assert not problems, problems[:5]
    assert ended <= SCHEMAS // 20 and len(texts) > SCHEMAS // 2, (ended, len(texts))
