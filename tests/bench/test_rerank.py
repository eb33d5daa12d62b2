"""`grit bench rerank`: what it counts, and both ways over the same candidates."""

from __future__ import annotations

from grit_jax.bench.rerank import RerankBenchOptions, bench_rerank, lines
from grit_jax.bench.texts import TextMaker
from grit_jax.text.relevance import relevance_question


def test_the_report(tiny_model):
    options = RerankBenchOptions(candidates=3, tokens=20, query_tokens=4, repeats=1)
    result = bench_rerank(tiny_model, options)
    cached, read = result["cached"], result["read"]
    # Reading has the same text and, in place of each record, the document and the separator after
    # it; only its beginning differs ("<s>" beside the turn's separator).
    question = relevance_question(TextMaker(tiny_model).text(4, "query"))
    asked = len(tiny_model.tokenizer.encode(question))
    assert cached["tokens_read"] > 3 * asked
    assert read["tokens_read"] - cached["tokens_read"] >= 3 * 20
    assert 0 < cached["load_s"] < cached["seconds"] and read["seconds"] > 0
    assert result["speedup"] == read["seconds"] / cached["seconds"]
    assert result["storage_bytes"] > 0 and 0 <= result["most_difference"] < 1
    text = "\n".join(lines(result))
    assert "3 candidates of 20 tokens" in text and "times as fast from records" in text
