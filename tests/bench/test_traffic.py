"""Mixed requests: the same for a seed, of all kinds, in the shares that are asked for."""

from __future__ import annotations

import json
from collections import Counter

from grit_jax.bench.traffic import MALFORMED, TrafficOptions, requests


def test_requests_are_drawn_from_a_seed():
    options = TrafficOptions(store="docs", new_tokens=5)
    drawn = requests(2000, options)
    assert drawn == requests(2000, options) and drawn[:50] == requests(50, options)
    assert drawn != requests(2000, TrafficOptions(store="docs", new_tokens=5, seed=1))
    kinds = Counter(request.kind for request in drawn)
    assert 150 < kinds["cancelled"] < 250 and 60 < kinds["malformed"] < 140
    usual = {"embed", "chat", "stream", "completion", "response", "rerank"}
    assert set(kinds) == {*usual, "documents", "search", "cancelled", "malformed"}
    assert {(r.path, r.body) for r in drawn if r.expected == "refused"} == set(MALFORMED)
    for request in drawn:
        if request.expected == "answered":
            body = json.loads(request.body)
            assert 1 <= body.get("max_tokens", body.get("max_output_tokens", 1)) <= 5
            assert request.streams == (request.kind == "stream")


def test_without_a_store_nothing_names_one():
    assert not any(b'"store": "' in r.body or "vector_stores" in r.path for r in requests(500))
