"""One server of the tiny model for all tests of the room, and the official client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server

from grit_jax.serving.settings import ServeLimits, ServeSettings

NAME = "tiny"


@pytest.fixture(scope="session")
def server(tiny_model) -> Iterator[LiveServer]:
    """Four slots; nothing is compiled before it is needed."""
    limits = ServeLimits(body_bytes=200_000, items=64, tokens=20_000, choices=8, queue=64)
    settings = ServeSettings(
        NAME, slots=4, context=256, instruction="Find it", limits=limits, warm_up=False
    )
    with live_server(tiny_model, settings) as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
