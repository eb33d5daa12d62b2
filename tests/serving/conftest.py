"""One server of the tiny model for all tests of the room, with an index, and the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, live_server

from grit_jax.rag.index import IndexOptions, build_index
from grit_jax.serving.settings import ServeLimits, ServeSettings

NAME = "tiny"


@pytest.fixture(scope="session")
def corpus(sentences, tmp_path_factory) -> Path:
    """Twelve documents with metadata."""
    rows = [
        {"id": f"d{i}", "title": "Amber" * (i % 2), "text": text, "metadata": {"n": i}}
        for i, text in enumerate(sentences[:12])
    ]
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def index_path(tiny_model, corpus, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("indices") / "docs"
    build_index(tiny_model, corpus, path, IndexOptions(), quiet=True)
    return path


@pytest.fixture(scope="session")
def server(tiny_model, index_path) -> Iterator[LiveServer]:
    """Four slots; nothing is compiled before it is needed."""
    limits = ServeLimits(body_bytes=200_000, items=64, tokens=20_000, choices=8, queue=64)
    settings = ServeSettings(
        NAME,
        slots=4,
        context=256,
        instruction="Find it",
        indices={"docs": index_path},
        limits=limits,
        warm_up=False,
    )
    with live_server(tiny_model, settings) as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
