"""`serve` in a process of its own: the warm-up, signals, addresses."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time

import pytest
from served_process import running

from grit_jax.errors import GritError
from grit_jax.serving.server import serve
from grit_jax.serving.settings import ServeSettings

LONG = {
    "messages": [{"role": "user", "content": "Go on"}],
    "max_tokens": 150,
    "ignore_eos": True,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(path)
    return path


def test_sigterm_loses_no_request(directory):
    """Requests under way are answered, streams run to their end; then the process ends with 0."""
    with running(directory, "--name", "m", "--slots", "4", "--context", "256", "--no-warm-up") as (
        process,
        client,
        lines,
    ):
        assert client.send("/ready")[0] == 200
        client.post("/v1/chat/completions", **(LONG | {"max_tokens": 2}))
        replies: list = []
        send = lambda **more: replies.append(client.send("/v1/chat/completions", LONG | more))
        threads = [
            threading.Thread(target=send, kwargs={"stream": stream})
            for stream in (False, True, False, True, False, True)  # more than there are slots
        ]
        for thread in threads:
            thread.start()
        running_ = "vllm:num_requests_running"
        while not any(n.startswith(running_) and v >= 4 for n, v in client.metrics().items()):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert process.wait(60) == 0
        assert len(replies) == 6
        for status, value, _ in replies:
            assert status == 200
            if isinstance(value, str):
                assert value.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in value
            else:
                assert value["usage"]["completion_tokens"] == 150
        with pytest.raises(OSError):
            client.send("/health")
    log = [json.loads(line) for line in lines if line.startswith("{")]
    assert not [line for line in log if line["path"] == "/ready"]  # it was ready
    chats = [line for line in log if line["handler"] == "/v1/chat/completions"]
    assert len(chats) == 7 and {line["status"] for line in chats} == {200}
    assert sum(line["completion_tokens"] for line in chats) == 6 * 150 + 2


def test_an_address_in_use_is_one_line(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("no.such.host.invalid", 0)):
            with pytest.raises(GritError, match=f"--host {host} --port {number}"):
                serve(tiny_model, ServeSettings("m", slots=1, context=128), host, number)
