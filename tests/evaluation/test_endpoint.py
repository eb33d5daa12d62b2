"""The client of OpenAI-compatible servers: against our own server, and against small servers that
answer as others do."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
import warnings

import numpy as np
import pytest
from live_server import live_server

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint, EndpointSettings, is_url
from grit_jax.inference.model import GritLM
from grit_jax.rag.rerank import read_relevance, reading_prompts
from grit_jax.serving.settings import ServeSettings

pytest.importorskip("openai")
QUICK = EndpointSettings(retries=2, batch=3, connections=2, timeout=20)


@pytest.fixture(scope="module")
def server(tiny_model):
    settings = ServeSettings("tiny", slots=2, context=256, warm_up=False)
    with live_server(tiny_model, settings) as running:
        yield running


@pytest.fixture(scope="module")
def endpoint(server):
    return Endpoint(server.url, QUICK)


class Other(http.server.BaseHTTPRequestHandler):
    """A server of somebody else's: each text's vector is its length and its number of vowels."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        if self.server.failures:
            status, headers, error = self.server.failures.pop(0)
            return self.reply(error, status, headers)
        self.reply(self.server.answer(self.path, body))

    def reply(self, value, status=200, headers=()):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(value, str) else "application/json"
        for name, text in [("Content-Type", kind), ("Content-Length", len(data)), *headers]:
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *values):
        pass


def vectors(path, body):
    texts = body["input"]
    data = [
        {"index": i, "embedding": [float(len(t)), 1.0 + sum(map(t.count, "aeiou"))]}
        for i, t in enumerate(texts)
    ]
    return {"data": data[::-1]}  # in any order: the index counts


@contextlib.contextmanager
def other_server(answer=vectors, models=("m",), failures=()):
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    httpd.seen, httpd.failures, httpd.answer = [], list(failures), answer
    httpd.models = {"data": [{"id": name, "owned_by": "somebody"} for name in models]}
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()


def test_vectors_of_our_server_are_those_of_encode(endpoint, tiny_model, sentences):
    assert (endpoint.is_ours, endpoint.model) == (True, "tiny")
    assert endpoint.url.endswith("/v1")
    texts = [*sentences[:7], "größer 北京 {text} {instruction}"]  # three requests
    for instruction in ("", "Find the page"):
        expected = tiny_model.encode(texts, instruction)
        np.testing.assert_allclose(endpoint.encode(texts, instruction), expected, atol=1e-6)
    short = endpoint.encode(texts, "Find", max_length=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that texts were cut
        np.testing.assert_allclose(short, tiny_model.encode(texts, "Find", 16), atol=1e-6)
    assert endpoint.encode([]).shape[0] == 0


def test_empty_texts_are_sent_as_a_space(endpoint, tiny_model, sentences):
    with pytest.warns(UserWarning, match="1 empty texts are sent as a space"):
        found = endpoint.encode([sentences[0], ""])
    np.testing.assert_allclose(found, tiny_model.encode([sentences[0], " "]), atol=1e-6)


def test_the_default_length_is_lowered_to_the_context(tiny_model, sentences):
    """Of a model that reads 64 tokens; a length that the caller names must fit."""
    config = tiny_model.config.__class__(
        **{**vars(tiny_model.config), "max_position_embeddings": 64}
    )
    model = GritLM(config, tiny_model.params, tiny_model.tokenizer, tiny_model.chat)
    texts = [sentences[0] * 12]
    with live_server(model, ServeSettings("t", slots=1, context=64, warm_up=False)) as server:
        small = Endpoint(server.url, QUICK)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_allclose(small.encode(texts), model.encode(texts), atol=1e-6)
        with pytest.raises(GritError, match="expected -1 or 1 to 64, this model's context, got 65"):
            small.encode(texts, max_length=65)


def test_relevance_of_our_server_is_that_of_the_model(endpoint, tiny_model, sentences):
    queries, documents = ["Which river?", "Which river?", "Stone"], sentences[:3]
    prompts = reading_prompts(tiny_model, list(zip(queries, documents, strict=True)), 0)
    found = endpoint.relevance(queries, documents)
    np.testing.assert_allclose(found, read_relevance(tiny_model, prompts.ids), atol=1e-6)
    with other_server(lambda path, body: {"data": []}) as other:
        with pytest.raises(GritError, match="0 results for 2 texts"):
            Endpoint(other.url, QUICK).relevance(["a", "a"], ["b", "c"])
        assert other.seen[0][:2] == (
            "/v1/score",
            {"model": "m", "text_1": ["a", "a"], "text_2": ["b", "c"]},
        )


def test_completions_and_chats(endpoint):
    """The fields go as they are given; choices come back by their index."""
    choices = [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]
    with other_server(lambda path, body: {"choices": choices}) as other:
        client = Endpoint(other.url, QUICK)
        assert [c["text"] for c in client.complete(["x", "y"], echo=True)] == ["a", "b"]
        messages = [{"role": "user", "content": "x"}]
        assert [c["text"] for c in client.chat(messages, max_tokens=2)] == ["a", "b"]
        assert [seen[:2] for seen in other.seen] == [
            ("/v1/completions", {"model": "m", "prompt": ["x", "y"], "echo": True}),
            ("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 2}),
        ]
        other.answer = lambda path, body: {"choices": []}
        with pytest.raises(GritError, match="/chat/completions: the reply has no choices"):
            client.chat(messages)
    with pytest.raises(GritError, match="400 for /v1/completions: nonsense: unknown field"):
        endpoint.complete(["x"], nonsense=1)


def test_another_server_gets_the_instruction_in_the_text(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with other_server() as other:
        settings = EndpointSettings(api_key_env="SOME_KEY", batch=2)
        endpoint = Endpoint(other.url, settings)
        assert (endpoint.is_ours, endpoint.model) == (False, "m")
        found = endpoint.encode(["aa", "bcd", "e {text}"], "Find {x}")
        sent = sorted((body["input"] for _, body, _ in other.seen), key=len, reverse=True)
        assert sent == [
            ["Instruct: Find {x}\nQuery: aa", "Instruct: Find {x}\nQuery: bcd"],
            ["Instruct: Find {x}\nQuery: e {text}"],
        ]
        assert {key for _, _, key in other.seen} == {"Bearer secret"}
        fields = {"model", "input"}
        assert all(body.keys() == fields for _, body, _ in other.seen)  # nothing of ours or vLLM's
        lengths = np.array([[len(text)] for batch in sent for text in batch])
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        vowels = [[1 + sum(map(t.count, "aeiou"))] for batch in sent for t in batch]
        np.testing.assert_allclose(found[:, :1] / found[:, 1:], lengths / vowels, rtol=1e-5)
        other.seen.clear()
        endpoint.encode(["aa"], max_length=9)
        assert other.seen[0][1] == {"model": "m", "input": ["aa"], "truncate_prompt_tokens": 9}
        templates = EndpointSettings(
            instruction_template="<|user|>\n{instruction}\n<|embed|>\n{text}",
            document_template="<|embed|>\n{text}",
        )
        grit = Endpoint(other.url + "/v1/", templates)
        for instruction in ("Find", ""):
            grit.encode(["aa"], instruction)
        assert [body["input"][0] for _, body, _ in other.seen[1:]] == [
            "<|user|>\nFind\n<|embed|>\naa",
            "<|embed|>\naa",
        ]


def test_a_full_server_is_asked_again_when_it_says_so():
    error = {"error": {"message": "busy", "type": "t", "param": None, "code": None}}
    full = (429, [("Retry-After", "0.3")], error)
    with other_server(failures=[full]) as other:
        start = time.monotonic()
        Endpoint(other.url, QUICK).encode(["a"])
        assert 0.3 <= time.monotonic() - start < 5 and len(other.seen) == 2
    with other_server(failures=[full] * 3) as other:
        with pytest.raises(GritError, match=r"429 for /v1/embeddings: busy \(after 2 retries\)"):
            Endpoint(other.url, QUICK).encode(["a"])
        assert len(other.seen) == 3


@pytest.mark.parametrize(
    "answer,message",
    [
        ({"data": []}, "0 results for 1 texts"),
        ({"data": [{"index": 0}]}, "no list of embeddings"),
        ({"data": [{"index": 7, "embedding": [1.0]}]}, "no list of embeddings"),
        ({"data": [{"index": 0, "embedding": 1.0}]}, "expected vectors of one length"),
        ({"data": [{"index": 0, "embedding": [1.0, float("nan")]}]}, "not finite"),
        ([1], "the reply is no JSON object"),
        ("<html>", "the reply is no JSON object"),
    ],
)
def test_a_reply_that_is_none(answer, message):
    with (
        other_server(lambda path, body: answer) as other,
        pytest.raises(GritError, match=message),
    ):
        Endpoint(other.url, QUICK).encode(["a"])


def test_errors_name_the_address_and_what_to_do():
    with pytest.raises(GritError, match=r"http://127.0.0.1:9/v1: cannot be reached"):
        Endpoint("http://127.0.0.1:9", EndpointSettings(retries=0))
    refused = (401, [], {"error": {"message": "bad key"}})
    with (
        other_server(failures=[refused]) as other,
        pytest.raises(GritError, match=r"401 for .*: bad key; put the server's key into \$KEY"),
    ):
        Endpoint(other.url, EndpointSettings(api_key_env="KEY")).encode(["a"])
    with other_server(models=("a", "b")) as other:
        with pytest.raises(GritError, match="2 models; name one .*: a, b"):
            Endpoint(other.url, QUICK)
        assert Endpoint(other.url, EndpointSettings("b")).model == "b"
        with pytest.raises(GritError, match="no model 'c'; the server lists a, b"):
            Endpoint(other.url, EndpointSettings("c"))
    with other_server(models=()) as other, pytest.raises(GritError, match="lists no model"):
        Endpoint(other.url, QUICK)
    for url, message in (
        ("http://", "expected an address such as"),
        ("http://a:b@host/v1", "put the key into the environment"),
        ("http://host/v1?x=1", r"without \? and #"),
    ):
        with pytest.raises(GritError, match=message):
            Endpoint(url)
    with pytest.raises(GritError, match="instruction_template: expected a text with"):
        EndpointSettings(instruction_template="{text}")
    assert is_url("https://x") and not is_url("httpd/model")


def test_a_server_that_is_too_slow():
    def slow(path, body):
        time.sleep(0.5)
        return vectors(path, body)

    with other_server(slow) as other:
        endpoint = Endpoint(other.url, EndpointSettings(timeout=0.1, retries=0))
        with pytest.raises(GritError, match="no answer within 0.1 seconds"):
            endpoint.encode(["a"])
