"""What a build reports, as a line and as JSON."""

from __future__ import annotations

import dataclasses
import json

from grit_jax.rag.index_options import IndexSummary

SUMMARY = IndexSummary(
    documents=3,
    documents_truncated=1,
    max_length=64,
    encoded=2,
    skipped=1,
    replaced=0,
    deleted=0,
    lines_skipped={"empty": 2},
    tokens=30,
    tokens_encoded=20,
    seconds=1.25,
    kv="native",
    vectors="exact",
    bytes_vectors=96,
    bytes_lexical=1_500_000,
    bytes_kv=2_000_000,
    bytes_per_token_per_layer=64.0,
    kv_ratio=2.0,
)


def test_a_summary_as_a_line():
    assert str(SUMMARY) == (
        "3 documents (20 tokens encoded in 1.2 s, 1 were indexed before, 1 cut to 64 tokens,"
        " 2 corpus lines skipped): vectors 0.0 MB, BM25 1.5 MB, caches 2.0 MB; 64 bytes of cache"
        " per token and layer (native: 2.00 of bfloat16)"
    )
    assert "bytes of cache" not in str(dataclasses.replace(SUMMARY, bytes_kv=0))


def test_a_summary_travels_as_json():
    assert IndexSummary(**json.loads(json.dumps(SUMMARY.to_dict()))) == SUMMARY
