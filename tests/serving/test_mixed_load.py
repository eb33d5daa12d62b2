"""Mixed requests from many clients at a server in a process of its own."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter

import pytest
from live_server import live_server
from served_folders import save_served
from served_process import running

from grit_jax.bench.load import LoadOptions, Target, bench_serve
from grit_jax.bench.traffic import TrafficOptions, requests
from grit_jax.serving.settings import ServeLimits, ServeSettings

pytestmark = pytest.mark.slow
TRAFFIC = TrafficOptions(store="docs", new_tokens=24)
CLIENTS = 16
CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Which river is quiet?"}]}


@pytest.fixture(scope="module")
def arguments(tiny_model, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    served = save_served(tiny_model, sentences[:8], folder)
    return [*served, "--slots", "16", "--context", "512", "--no-warm-up"]


def test_many_clients_get_what_they_ask_for_and_sooner(arguments):
    """As `grit bench serve` measures it, on a server whose programs are compiled by then."""
    options = LoadOptions(
        requests=400,
        connections=32,
        alone=60,
        warm_up=300,
        traffic=TrafficOptions(store="docs", new_tokens=64),
    )
    with running(*arguments) as (process, client, _):
        result = bench_serve(client.url, options)
        metrics = client.metrics()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert (result["failed"], result["failures"]) == (0, [])
    assert 20 < result["statuses"]["left"] < 80 and result["statuses"]["400"] > 5
    assert result["speedup"] > 1.5
    assert result["memory_growth"] < 0.1
    for name in ("grit_requests_failed_total", "grit_leaks_total"):
        assert metrics[name] == 0


OVERLOAD = {  # one of each kind, with enough work that others come meanwhile
    "embed": ("/v1/embeddings", {"input": ["a river and a stone " * 8] * 16}),
    "chat": (CHAT, {**QUESTION, "max_tokens": 40, "ignore_eos": True}),
    "stream": (CHAT, {**QUESTION, "max_tokens": 40, "ignore_eos": True, "stream": True}),
    "rerank": ("/v1/rerank", {"query": "a river", "documents": ["a quiet stone " * 5] * 16}),
    "store chat": (CHAT, {**QUESTION, "max_tokens": 20, "store": "docs", "mode": "doc"}),
    "store rerank": ("/v1/rerank", {"query": "a river", "store": "docs", "rerank": 6}),
    "store search": ("/v1/vector_stores/docs/search", {"query": ["a", "river", "stone"] * 5}),
}


def test_overload_by_all_kinds_of_requests_is_a_429_and_passes(tiny_model, index_path):
    """Clients send each kind until it was refused once. What is refused says when to come back;
    what is accepted is answered; and when the clients have left, everything is served again."""
    limits = ServeLimits(queue=2)
    settings = ServeSettings(
        "tiny", slots=1, context=256, indices={"docs": index_path}, limits=limits, warm_up=False
    )
    statuses: dict[str, Counter] = {kind: Counter() for kind in OVERLOAD}
    problems = []
    with live_server(tiny_model, settings) as server:
        # What is compiled first makes nobody wait later.
        answers = {kind: server.send(path, body)[:2] for kind, (path, body) in OVERLOAD.items()}
        assert {status for status, _ in answers.values()} == {200}
        end = time.monotonic() + 120

        def client(kind: str) -> None:
            path, body = OVERLOAD[kind]
            while not statuses[kind][429] and time.monotonic() < end:
                status, value, headers = server.send(path, body)
                statuses[kind][status] += 1
                if status == 429:
                    known = value["error"]["type"] == "rate_limit_error"
                    if not known or int(headers["retry-after"]) < 1:
                        problems.append((kind, value, headers))
                elif status != 200:
                    problems.append((kind, status, value))

        threads = [
            threading.Thread(target=client, args=(kind,)) for kind in OVERLOAD for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert all(each[429] for each in statuses.values()), statuses
        assert server.metrics()["grit_refused_requests_total"] == sum(
            each[429] for each in statuses.values()
        )
        server.wait_until_idle()
        for kind, (path, body) in OVERLOAD.items():
            assert server.send(path, body)[0] == 200, kind


def test_sigterm_under_load_loses_no_accepted_request(arguments):
    """What the server has begun it ends: each client that it counts as answered has the whole
    reply."""
    # Clients that leave are left out: their requests end with them.
    sent = [r for r in requests(400, TRAFFIC) if r.expected == "answered"]
    with running(*arguments) as (process, client, lines):
        target, left = Target(client.url), iter(sent)
        outcomes: list = []

        def work() -> None:
            for request in taken():
                outcomes.append(target.send(request))
                if outcomes[-1].status == 0:
                    return

        lock = threading.Lock()

        def taken():
            while True:
                with lock:
                    request = next(left, None)
                if request is None:
                    return
                yield request

        threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 3 * CLIENTS:
            threads[0].join(0.05)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(300)
        assert process.wait(120) == 0
    log = [json.loads(line) for line in lines if line.startswith('{"time"')]
    statuses = Counter(line["status"] for line in log if line["method"] == "POST")
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    assert 3 * CLIENTS <= len(answered) < len(sent)
    assert not [o.problem for o in answered if o.problem]
    assert statuses == {200: len(answered)}
