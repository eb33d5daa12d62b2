"""A server in a thread of this process."""

from __future__ import annotations

import socket

import pytest
from live_server import Client

from grit_jax.errors import GritError
from grit_jax.serving.background import BackgroundServer
from grit_jax.serving.settings import ServeSettings

SETTINGS = ServeSettings("m", slots=2, context=128, warm_up=False)


def test_it_answers_until_it_is_stopped(tiny_model):
    with BackgroundServer(tiny_model, SETTINGS) as server:
        server.wait_until_ready(60)
        client = Client(int(server.url.rsplit(":", 1)[1]))
        assert client.send("/health")[0] == 200
        assert client.post("/tokenize", prompt="Amber")["count"] > 0
    with pytest.raises(OSError):
        client.send("/health")
    server.stop()  # once more


def test_an_engine_that_does_not_fit_gives_the_address_back(tiny_model):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(GritError, match="--context 999999"):
        BackgroundServer(tiny_model, ServeSettings("m", slots=1, context=999_999), port=port)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_what_the_warm_up_fails_with_is_said(tiny_model, monkeypatch):
    def fail(self):
        raise GritError("no memory left")

    monkeypatch.setattr("grit_jax.serving.service.Service.warm_up", fail)
    server = BackgroundServer(tiny_model, ServeSettings("m", slots=1, context=128))
    with pytest.raises(GritError, match="the server has ended"):
        server.wait_until_ready(60)
    with pytest.raises(GritError, match="no memory left"):
        server.stop()
