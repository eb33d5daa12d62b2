"""Lengths against NumPy, and the report's text."""

from __future__ import annotations

import json

import numpy as np

from grit_jax.data.preparation_report import (
    LengthCounts,
    PreparationReport,
    contamination_report,
)


def test_lengths_are_those_of_numpy():
    lengths = np.random.default_rng(0).integers(1, 500, 1001)
    one, other = LengthCounts(), LengthCounts()
    for i, length in enumerate(lengths.tolist()):
        (one if i % 2 else other).add("query", length)
    one.update(LengthCounts(json.loads(json.dumps(other.to_json()))))
    summary = one.summary()["query"]
    assert summary["texts"] == 1001 and summary["total"] == lengths.sum()
    assert abs(summary["mean"] - lengths.mean()) < 0.01
    assert (summary["min"], summary["max"]) == (lengths.min(), lengths.max())
    for percent in (5, 50, 95, 99):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert summary[f"p{percent}"] == expected


def test_contamination_counts_each_text_once(tmp_path):
    matches = [("a", 1, "exact", "query"), ("a", 1, "ngram", "pos[0]"), ("b", 9, "ngram", "pos[1]")]
    path = tmp_path / "matches"
    names = ("file", "text", "method", "part")
    path.write_text("".join(json.dumps(dict(zip(names, m))) + "\n" for m in matches))
    assert contamination_report(path, {"a": 5, "b": 6, "c": 7}, 3) == {
        "files": {
            "a": {"texts": 5, "matched": 1},
            "b": {"texts": 6, "matched": 1},
            "c": {"texts": 7, "matched": 0},
        },
        "too_short": 3,
        "methods": {"exact": 1, "ngram": 2},
        "parts": {"query": 1, "pos": 2},
    }


def test_text():
    report = PreparationReport(
        kind="embedding",
        examples=2,
        read=9,
        sources={},
        formats={},
        dropped={"bad": 3, "exact duplicate": 4},
        first={"bad": "f:1"},
        duplicates={"exact": 4, "near": 1},
        languages={"en": 2},
        characters={"query": {"texts": 2, "p50": 7, "p95": 8, "max": 9}},
        tokens={},
        contamination={"files": {"e": {"texts": 5, "matched": 1}}},
        shards=1,
        bytes=10,
    )
    assert str(report).splitlines() == [
        "  dropped: 4: exact duplicate",
        "  dropped: 3: bad (first: f:1)",
        "  kept: 1 near duplicates",
        "  query: 2 texts, characters: median 7, 95 % 8, most 9",
        "  languages: en 2",
        "  against e: 1 of 5 texts were found",
    ]
