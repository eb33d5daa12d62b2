"""`grit bench serve`: what it says of a server that answers, and of one that does not."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest
from cli_world import run

from grit_jax.bench.load import LEAVES_AFTER, LoadOptions, Target, bench_serve, lines
from grit_jax.bench.traffic import TrafficOptions, requests
from grit_jax.errors import GritError

SLOW = 0.02  # seconds of an answer


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers after a while; embeddings fail, reranking is refused the first time, streams break
    off where the server says so."""

    def do_GET(self) -> None:
        memory = b"process_resident_memory_bytes 1.5e+06\n"
        self.reply(200, memory if self.path == "/metrics" else b'{"status": "ready"}')

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.add(self.headers.get("Authorization"))
        try:
            body = json.loads(raw)
        except ValueError:
            return self.reply(400, b"{}")
        time.sleep(SLOW)
        if self.path == "/v1/embeddings":
            return self.reply(500, b"broken")
        if self.path == "/v1/rerank" and raw not in self.server.refused:
            self.server.refused.add(raw)
            return self.reply(429, b"{}", [("Retry-After", "0")])
        if not body.get("stream"):
            malformed = not all(body.get(k, True) for k in ("messages", "documents", "prompt"))
            return self.reply(422 if malformed else 200, b"{}")
        self.reply(200, b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
        time.sleep(SLOW)
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n')

    def reply(self, status: int, text: bytes, headers: list[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.keys, server.refused = set(), set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()


def test_who_leaves_does_not_wait_for_an_idle_server(url):
    """It goes when the reply begins, or after `LEAVES_AFTER`, whichever is first."""
    [cancelled] = [r for r in requests(40) if r.expected == "cancelled"][:1]
    assert Target(url[0]).send(cancelled).seconds < LEAVES_AFTER
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = Target(f"http://127.0.0.1:{silent.getsockname()[1]}").send(cancelled)
    assert outcome.seconds >= LEAVES_AFTER and outcome.problem is None


def test_the_report(url):
    address, server = url
    options = LoadOptions(120, 8, 20, 4, "sesame", TrafficOptions(new_tokens=4))
    result = bench_serve(address, options)
    assert server.keys == {"Bearer sesame"}
    assert result["requests"] == 120 and result["alone"]["requests"] == 20
    assert result["speedup"] > 2  # eight clients of a server that only waits
    # Each of them is sent again; a malformed one may be refused so, too.
    assert result["refused_429"] >= result["latency_s"]["rerank"]["requests"] > 0
    problems = {failure["kind"]: failure["problem"] for failure in result["failures"]}
    assert problems["embed"] == "500: broken" and "chat" not in problems
    assert result["failed"] >= result["statuses"]["500"] > 0
    latency, first = result["latency_s"]["stream"], result["first_token_s"]["stream"]
    assert latency["p50"] >= first["p50"] >= 2 * SLOW  # not the event that names the role
    assert result["latency_s"]["chat"]["p50"] >= SLOW and "cancelled" not in result["latency_s"]
    assert result["memory"][0][1] == 1_500_000 and result["statuses"]["left"] > 0
    text = "\n".join(lines(result))
    assert "120 requests from 8 clients" in text and "embed /v1/embeddings: 500: broken" in text


def test_nobody_answers():
    for address in ("ftp://x", "http://", "http://a:b"):
        with pytest.raises(GritError, match="expected http://HOST:PORT"):
            Target(address)
    with pytest.raises(GritError, match="is grit serve running there"):
        bench_serve("127.0.0.1:1", LoadOptions())


def test_the_command(url, capsys, tmp_path):
    address, server = url
    (tmp_path / "keys").write_text("other\n")
    command = f"bench serve {address} --requests 10 --connections 2 --alone 2 --warm-up 1"
    result = run(capsys, f"{command} --api-keys {tmp_path}/keys --json")
    assert result.status == 0 and json.loads(result.out)["requests"] == 10
    assert server.keys == {"Bearer other"}
