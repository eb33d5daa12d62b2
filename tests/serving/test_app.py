"""What holds for every endpoint: errors, keys, limits, overload, clients that leave, ids."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import pytest
from live_server import Client, live_server

from grit_jax.serving.settings import ServeLimits, ServeSettings

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Go on"}],
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 0,
}


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "the body"),
        (b"null", "the body"),
        (b'{"input": "\xff"}', "not JSON"),
        (b'{"input": "\\ud800"}', "not JSON"),
        (b'{"input": NaN}', "input"),
        (b'{"input": [' + b"9" * 5000 + b"]}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"input": "x", "dimensions": Infinity}', "dimensions"),
    ],
)
def test_a_malformed_body_is_a_400(server, raw, words):
    status, value, _ = server.send("/v1/embeddings", raw=raw)
    assert status == 400 and words in value["error"]["message"]


def test_other_errors_have_the_same_form(server):
    for expected, path, options in (
        (404, "/v1/nothing", {}),
        (404, "/v1/models/other", {}),
        (405, "/v1/embeddings", {"method": "GET"}),
        (405, "/health", {"body": {}}),
        (413, "/v1/embeddings", {"body": {"input": "x" * 300_000}}),
        (415, "/v1/embeddings", {"raw": b"a=1", "headers": {"Content-Type": "text/plain"}}),
        (404, "/v1/embeddings", {"body": {"input": "x", "model": "gpt"}}),
    ):
        status, value, _ = server.send(path, **options)
        assert status == expected, (path, value)
        assert set(value["error"]) == {"message", "type", "param", "code"}


def test_models_and_health(openai_client, server, tiny_model):
    [model] = openai_client.models.list().data
    assert model.id == "tiny" and openai_client.models.retrieve("tiny") == model
    assert model.embedding_dimensions == tiny_model.embedding_width
    assert server.send("/health")[0] == server.send("/ready")[0] == 200
    assert "/v1/embeddings" in server.send("/openapi.json")[1]["paths"]


def test_ignored_fields_are_named_and_counted(server):
    fields = {"store": True, "metadata": {"a": "b"}, "reasoning_effort": None}
    status, _, headers = server.send("/v1/chat/completions", LONG | {"max_tokens": 1} | fields)
    assert status == 200 and headers["x-grit-ignored"] == "metadata, store"
    assert server.metrics()['grit_ignored_fields_total{field="store"}'] >= 1


def test_request_ids(server):
    given = server.send("/health", headers={"X-Request-Id": "mine-7"})[2]["x-request-id"]
    made = [
        server.send("/health", headers={"X-Request-Id": bad})[2]["x-request-id"]
        for bad in ("", "a b")
    ]
    assert given == "mine-7" and all(each.startswith("req_") for each in made)
    assert len(set(made)) == 2


def test_a_client_that_leaves_frees_its_slot(server):
    """While a stream comes, and while a whole answer is awaited."""
    before = server.metrics()["grit_requests_cancelled_total"]
    for number, stream in enumerate((True, False), 1):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps(LONG | {"stream": stream, "n": 4})
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        if stream:
            assert b"data" in connection.getresponse().readline()
        while not server.service.engine.stats().slots_in_use:
            time.sleep(0.005)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        began = time.monotonic()
        server.wait_until_idle()
        stats = server.service.engine.stats()
        assert (stats.slots_in_use, stats.waiting, stats.leaks) == (0, 0, 0)
        assert server.metrics()["grit_requests_cancelled_total"] >= before + number
    assert time.monotonic() - began < 30


def test_overload_is_a_429_and_passes(tiny_model):
    """Refused requests say when to come back; those accepted are all answered."""
    limits = ServeLimits(queue=2, body_bytes=1000)
    settings = ServeSettings("tiny", slots=1, context=256, limits=limits, warm_up=False)
    with live_server(tiny_model, settings) as server:
        replies: list[tuple] = []
        send = lambda: replies.append(
            server.send("/v1/chat/completions", LONG | {"max_tokens": 40})
        )
        threads = [threading.Thread(target=send) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = [status for status, _, _ in replies]
        assert set(codes) == {200, 429} and codes.count(200) >= 3
        for status, value, headers in replies:
            if status == 429:
                assert int(headers["retry-after"]) >= 1
                assert value["error"]["type"] == "rate_limit_error"
            else:
                assert value["usage"]["completion_tokens"] == 40
        # More answers than there is room for: none of them is left behind.
        assert server.error("/v1/chat/completions", **(LONG | {"n": 8}))[0] == 429
        server.wait_until_idle()
        assert server.send("/v1/chat/completions", LONG | {"max_tokens": 1})[0] == 200
        assert server.metrics()["grit_refused_requests_total"] == codes.count(429) + 1


def test_keys_and_requests_before_the_warm_up(tiny_model):
    settings = ServeSettings("tiny", slots=1, context=128, api_keys=["sesame", "other"])
    with live_server(tiny_model, settings) as server:
        for header in (None, "sesame", "Bearer sesam", "Bearer sesame2", "Basic sesame", "Bearer "):
            headers = {"Authorization": header} if header else {}
            for path in ("/v1/models", "/metrics", "/nothing"):
                status, value, given = server.send(path, headers=headers)
                assert status == 401 and given["www-authenticate"] == "Bearer"
                assert value["error"]["code"] == "invalid_api_key"
        good = {"Authorization": "Bearer other"}
        assert server.send("/v1/models", headers=good)[0] == 200
        assert Client(server.port).send("/health")[0] == 200
        assert server.send("/ready")[:2] == (503, {"status": "compiling"})
        status, value, given = server.send("/v1/embeddings", {"input": "x"}, headers=good)
        assert status == 503 and value["error"]["code"] == "not_ready" and given["retry-after"]
