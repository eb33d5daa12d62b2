"""Spans of requests, as a collector receives them."""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import grit_jax
from grit_jax.errors import GritError
from grit_jax.serving.background import BackgroundServer
from grit_jax.serving.settings import ServeSettings
from grit_jax.serving.tracing import Tracing, traces_endpoint

pytest.importorskip("opentelemetry.sdk.trace", reason="extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="extra otel is not installed")

from live_server import Client, LiveServer  # noqa: E402
from otlp_receiver import Collector, ReceivedSpan, collector  # noqa: E402

SERVER, INTERNAL = 2, 1  # SpanKind of the protocol
ERROR = 2  # StatusCode
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
QUESTION = [{"role": "user", "content": "Amber?"}]


@pytest.fixture(scope="module")
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(server, collecting) -> Iterator[LiveServer]:
    """The server of the room, traced for the tests of this file."""
    server.service.tracing = Tracing(traces_endpoint(collecting.url), "tiny")
    yield server
    server.service.tracing.close()
    server.service.tracing = None


@pytest.fixture
def spans(traced, collecting):
    """The spans of the requests since the last call: those of requests, and those of stages."""

    def taken() -> tuple[list[ReceivedSpan], list[ReceivedSpan]]:
        time.sleep(0.02)  # a span ends after its reply
        traced.service.tracing.flush()
        received = collecting.take()
        whole = [span for span in received if span.kind == SERVER]
        return whole, [span for span in received if span.kind == INTERNAL]

    taken()
    return taken


def test_a_chat_over_documents(traced, collecting, spans):
    fields = {"store": "docs", "mode": "doc", "k": 2}
    body = {"messages": QUESTION, "max_tokens": 6, "temperature": 0, "ignore_eos": True} | fields
    began = time.time_ns()
    status, reply, _ = traced.send(
        "/v1/chat/completions", body, headers={"traceparent": PARENT, "x-request-id": "r-1"}
    )
    ended = time.time_ns()
    assert status == 200
    (span,), stages = spans()
    assert collecting.paths[-1] == "/v1/traces"
    assert span.resource["service.name"] == "grit-serve"
    # W3C Trace Context: the trace is the caller's, and the span a child of the caller's span.
    assert (span.trace_id, span.parent_id) == (PARENT[3:35], PARENT[36:52])
    assert span.name == "chat tiny" and span.status == 0
    usage, grit = reply["usage"], reply["grit"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "grit_jax",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.id": "r-1",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.prompt_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.completion_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.response.finish_reasons": ["length"],
        "grit.cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "grit.documents": [document["id"] for document in grit["documents"]],
        "grit.store": "docs",
        "grit.mode": "doc",
        "grit.cache": grit["cache"],
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
    }
    assert expected["grit.cached_tokens"] > 0 and len(expected["grit.documents"]) == 2
    assert {name: span.attributes.get(name) for name in expected} == expected
    assert not [name for name in span.attributes if "content" in name or "messages" in name]
    # Stages: one after the other, inside the span, as long as the reply says.
    assert [stage.name for stage in stages] == [
        "encode_query",
        "search",
        "records",
        "queue",
        *(["records"] if len(stages) == 7 else []),
        "prefill",
        "decode",
    ]
    assert all((s.trace_id, s.parent_id) == (span.trace_id, span.span_id) for s in stages)
    for before, after in zip(stages, stages[1:]):
        assert before.end <= after.start + 1_000_000
    assert began - 1_000_000 <= span.start <= stages[0].start
    assert stages[-1].end <= span.end + 1_000_000 and span.end <= ended + 1_000_000
    lengths: dict[str, float] = {}
    for stage in stages:
        lengths[stage.name] = lengths.get(stage.name, 0.0) + stage.seconds
    for name in ("encode_query", "search", "queue", "prefill", "decode"):
        assert lengths[name] == pytest.approx(grit["timings"][name], abs=2e-3), name
    assert lengths["records"] == pytest.approx(grit["timings"]["load"], abs=2e-3)
    latency = lambda name: span.attributes[f"gen_ai.latency.{name}"]
    assert latency("time_in_queue") == pytest.approx(lengths["queue"], abs=1e-6)
    assert latency("time_in_model_decode") == pytest.approx(lengths["decode"], abs=1e-6)
    first = (stages[-1].start - span.start) / 1e9  # decoding begins with the first token
    assert latency("time_to_first_token") == pytest.approx(first, abs=1e-3)
    assert latency("e2e") == pytest.approx(span.seconds, abs=5e-3)


def test_a_stream_of_two_answers(traced, spans):
    body = {"messages": QUESTION, "max_tokens": 4, "n": 2, "stream": True, "ignore_eos": True}
    fields = {"stop": "zebra", "seed": 3, "top_p": 0.9}
    assert traced.send("/v1/chat/completions", body | fields)[0] == 200
    (span,), stages = spans()
    assert span.parent_id == "" and span.status == 0
    attributes = span.attributes
    assert attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.request.stream"] is True
    assert attributes["gen_ai.request.stop_sequences"] == ["zebra"]
    assert (attributes["gen_ai.request.seed"], attributes["gen_ai.request.top_p"]) == (3, 0.9)
    assert attributes["gen_ai.response.finish_reasons"] == ["length"] * 2
    assert attributes["gen_ai.usage.output_tokens"] == 8
    waited = attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < waited == attributes["gen_ai.latency.time_to_first_token"] < span.seconds
    decoded = [stage for stage in stages if stage.name == "decode"]
    assert sorted(stage.attributes["gen_ai.choice.index"] for stage in decoded) == [0, 1]
    assert {stage.attributes["gen_ai.usage.output_tokens"] for stage in decoded} == {4}
    assert "grit.documents" not in attributes


@pytest.mark.slow
def test_a_response_with_file_search(traced, spans):
    tool = {"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2}
    body = {"input": "Amber?", "max_output_tokens": 3, "temperature": 0, "tools": [tool]}
    reply = traced.post("/v1/responses", **body)
    (span,), stages = spans()
    assert (span.name, span.attributes["gen_ai.request.max_tokens"]) == ("chat tiny", 3)
    assert span.attributes["gen_ai.usage.input_tokens"] == reply["usage"]["input_tokens"]
    assert span.attributes["grit.store"] == "docs" and len(span.attributes["grit.documents"]) == 2
    assert {"search", "records", "prefill"} <= {stage.name for stage in stages}


def test_embeddings_reranking_and_search(traced, spans):
    usage = traced.post("/v1/embeddings", input=["amber", "stone"], dimensions=8)["usage"]
    traced.post("/v1/rerank", query="amber", documents=["stone", "amber"])
    traced.post("/v1/vector_stores/docs/search", query="amber", max_num_results=3)
    (embedded, ranked, searched), stages = spans()
    assert embedded.name == "embeddings tiny"
    assert embedded.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert embedded.attributes["gen_ai.embeddings.dimension.count"] == 8
    assert "gen_ai.response.finish_reasons" not in embedded.attributes
    assert ranked.name == "POST /v1/rerank"
    assert searched.name == "retrieval tiny" and len(searched.attributes["grit.documents"]) == 3
    assert searched.attributes["url.path"] == "/v1/vector_stores/docs/search"
    names = {
        span.name: {stage.name for stage in stages if stage.parent_id == span.span_id} - {"queue"}
        for span in (embedded, ranked, searched)
    }
    assert names == {
        "embeddings tiny": {"encode"},
        "POST /v1/rerank": {"encode"},
        "retrieval tiny": {"encode", "search"},
    }


def test_errors(traced, spans, monkeypatch):
    assert traced.send("/v1/chat/completions", {"messages": QUESTION, "n": 99})[0] == 400
    assert traced.send("/nowhere")[0] == 404

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(traced.service.model, "prompt_ids", fail)
    assert traced.send("/v1/chat/completions", {"messages": QUESTION})[0] == 500
    (bad, unknown, failed), stages = spans()
    assert stages == []
    # A mistake of the client is no error of the server's span.
    assert (bad.status, bad.attributes["error.type"]) == (0, "400")
    assert "gen_ai.response.model" not in bad.attributes
    assert (unknown.name, unknown.attributes["http.route"]) == ("GET other", "other")
    assert (failed.status, failed.message) == (ERROR, "RuntimeError: broken")
    assert failed.attributes["error.type"] == "500"


def test_an_answer_that_fails_in_a_stream_is_an_error(traced, spans, monkeypatch):
    """Its reply has begun with status 200."""
    from grit_jax.inference import requests

    finish = requests.Pending.finish
    fails = lambda self, result: self.fail(GritError("the answer is not finite"))
    monkeypatch.setattr(requests.Pending, "finish", fails)
    body = {"messages": QUESTION, "max_tokens": 2, "stream": True, "ignore_eos": True}
    status, text, _ = traced.send("/v1/chat/completions", body)
    monkeypatch.setattr(requests.Pending, "finish", finish)
    assert status == 200 and "not finite" in text
    (span,), _ = spans()
    assert (span.status, span.message) == (ERROR, "the answer is not finite")


def test_what_is_not_traced(traced, spans):
    for path in ("/health", "/ready", "/metrics"):
        assert traced.send(path)[0] == 200
    unsampled = PARENT[:-2] + "00"  # the caller does not want this trace
    body = {"prompt": "Amber"}
    assert traced.send("/tokenize", body, headers={"traceparent": unsampled})[0] == 200
    assert spans() == ([], [])
    assert traced.send("/tokenize", body, headers={"traceparent": "nonsense"})[0] == 200
    (span,), _ = spans()
    assert span.name == "POST /tokenize" and span.parent_id == ""


def test_the_last_spans_are_sent_when_a_server_ends(tiny_model, collecting):
    endpoint = traces_endpoint(collecting.url)
    settings = ServeSettings("m", slots=1, context=64, warm_up=False, traces_endpoint=endpoint)
    collecting.take()
    with BackgroundServer(tiny_model, settings) as server:
        server.wait_until_ready(60)
        Client(int(server.url.rsplit(":", 1)[1])).post("/tokenize", prompt="Amber")
    assert [span.name for span in collecting.take()] == ["POST /tokenize"]


@pytest.mark.parametrize(
    "given, url",
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://host:9/otlp/v1/traces?x=1", "https://host:9/otlp/v1/traces?x=1"),
    ],
)
def test_the_endpoint(given, url):
    assert traces_endpoint(given) == url


@pytest.mark.parametrize("given", ["localhost:4318", "grpc://host:4317", "http://", "http://h:x"])
def test_an_endpoint_that_is_no_url_is_refused(given):
    with pytest.raises(GritError, match=f"--otlp-traces-endpoint {given}: expected http://"):
        traces_endpoint(given)


def test_without_the_extra_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(GritError, match=r"run pip install 'grit-jax\[otel\]' first"):
        traces_endpoint("http://localhost:4318")


def test_the_sdk_is_imported_with_the_flag_alone():
    """By the functions that need it, not by a module."""
    package = Path(grit_jax.__file__).parent
    for path in [*package.glob("serving/*.py"), package / "cli" / "serve.py"]:
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                assert "opentelemetry" not in ast.unparse(statement), path
