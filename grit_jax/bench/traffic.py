"""Mixed requests for a server, drawn from a seed, for `grit bench serve`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Expected = Literal["answered", "refused", "cancelled"]
WORDS = (
    "river stone paper amber quiet engine window forest copper lantern orbit meadow signal velvet"
    " harbor thunder list sort text file number string value return"
)
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
# What a server must refuse with a 4xx, by its path.
MALFORMED: tuple[tuple[str, bytes], ...] = (
    (CHAT, b'{"messages": ['),
    (CHAT, b'{"messages": []}'),
    (CHAT, b'{"messages": [{"role": "user", "content": 3}]}'),
    (COMPLETIONS, b'{"prompt": "a", "temperature": "hot"}'),
    (COMPLETIONS, b'{"prompt": [[-1]]}'),
    (RESPONSES, b'{"input": [], "max_output_tokens": 0}'),
    ("/v1/embeddings", b'{"input": ["a", ""]}'),
    ("/v1/embeddings", b'{"input": "a", "model": "no such model"}'),
    ("/v1/rerank", b'{"query": "a", "documents": []}'),
    ("/v1/nothing", b"{}"),
)


@dataclasses.dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
      kind: what it asks for, such as "chat".
      streams: its reply comes as events.
      expected: how it ends: with an answer, with a 4xx, or by the client's leaving.
    """

    kind: str
    path: str
    body: bytes
    streams: bool = False
    expected: Expected = "answered"


@dataclasses.dataclass(frozen=True)
class TrafficOptions:
    """Which requests are drawn.

    Attributes:
      store: a vector store of the server, over which some chats and searches are; None: none.
      new_tokens: of an answer, at most; half of it on average.
      cancelled, malformed: shares of all requests.
    """

    store: str | None = None
    new_tokens: int = 128
    cancelled: float = 0.1
    malformed: float = 0.05
    seed: int = 0


def requests(count: int, options: TrafficOptions = TrafficOptions()) -> list[Request]:
    """So many requests of all kinds, always the same ones for the same options."""
    rng = np.random.default_rng(options.seed)
    drawn: list[Request] = []
    for number in range(count):
        chance = rng.random()
        if chance < options.malformed:
            path, raw = MALFORMED[number % len(MALFORMED)]
            drawn.append(Request("malformed", path, raw, expected="refused"))
        elif chance < options.malformed + options.cancelled:
            body = _chat(rng, options) | {"ignore_eos": True, "stream": bool(rng.random() < 0.5)}
            drawn.append(_request("cancelled", CHAT, body, expected="cancelled"))
        else:
            drawn.append(_useful(rng, options))
    return drawn


def _useful(rng: np.random.Generator, options: TrafficOptions) -> Request:
    kinds = ["embed", "embed", "chat", "chat", "stream", "completion", "response", "rerank"]
    if options.store is not None:
        kinds += ["documents", "documents", "search"]
    kind = str(rng.choice(kinds))
    if kind == "embed":
        texts = [_text(rng, 4, 60) for _ in range(int(rng.integers(1, 9)))]
        return _request(kind, "/v1/embeddings", {"input": texts, "encoding_format": "base64"})
    if kind == "rerank":
        documents = [_text(rng, 4, 30) for _ in range(4)]
        return _request(kind, "/v1/rerank", {"query": _text(rng, 2, 6), "documents": documents})
    if kind == "search":
        path = f"/v1/vector_stores/{options.store}/search"
        return _request(kind, path, {"query": _text(rng, 2, 6), "max_num_results": 3})
    if kind == "completion":
        body = {"prompt": _text(rng, 4, 30), "max_tokens": _length(rng, options), "temperature": 0}
        return _request(kind, COMPLETIONS, body)
    if kind == "response":
        body = {"input": _text(rng, 4, 30), "max_output_tokens": _length(rng, options)}
        return _request(kind, RESPONSES, {**body, "temperature": 0, "store": False})
    body = _chat(rng, options)
    if kind == "documents":
        body["store"] = options.store
    return _request(kind, CHAT, body | {"stream": kind == "stream"})


def _chat(rng: np.random.Generator, options: TrafficOptions) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": _text(rng, 3, 20)}],
        "max_tokens": _length(rng, options),
        "temperature": float(rng.choice([0.0, 1.0])),
        "seed": int(rng.integers(1000)),
    }


def _request(
    kind: str, path: str, body: dict[str, Any], expected: Expected = "answered"
) -> Request:
    streams = bool(body.get("stream"))
    return Request(kind, path, json.dumps(body).encode(), streams, expected)


def _length(rng: np.random.Generator, options: TrafficOptions) -> int:
    return int(rng.integers(1, options.new_tokens + 1))


def _text(rng: np.random.Generator, least: int, most: int) -> str:
    words: Sequence[str] = rng.choice(WORDS.split(), size=rng.integers(least, most + 1)).tolist()
    return " ".join(words)
