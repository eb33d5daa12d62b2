"""Timings as `grit bench rag` measures them, made up."""

from __future__ import annotations

from grit_jax.bench.lower_bound import Rates
from grit_jax.bench.rag import MEASURED, SHAPES, RagBench, RagTiming

# Total seconds of each layout over a long document (A); a long question (B) takes ten times as
# long.
TOTAL = {
    "none": 0.1,
    "query-then-doc": 0.9,
    "doc-then-query": 0.8,
    "doc": 0.2,
    "query": 0.7,
    "query-doc": 0.25,
    "doc-query": 0.16,
    "auto": 0.2,
}


def made_up_bench(tokens: int = 48, new_tokens: int = 3, cold: bool = True) -> RagBench:
    """Timings of every layout at `tokens` and at half of it; `auto` took `doc`."""

    def timing(shape: str, mode: str, long: int) -> RagTiming:
        total = TOTAL[mode] * (1 if shape == "A" else 10) * long / tokens
        question, document = (1, long) if shape == "A" else (long, 1)
        return RagTiming(
            mode=mode,
            shape=shape,
            kv="native",
            query_tokens=question,
            doc_tokens=document,
            new_tokens=new_tokens,
            ttft_s=total / 2,
            total_s=total,
            search_s=0.011,
            load_s=0.012,
            prefill_s=0.013,
            decode_s=total / 2,
            least_s=total * 0.9,
            most_s=total * 1.25,
            repeats=2,
            storage_bytes=1_234_567 if mode == "doc" else 192,
            floor_s=total / 4,
            used="doc" if mode == "auto" else mode,
            cold=cold,
        )

    curve = [
        timing(shape, mode, long)
        for long in (tokens // 2, tokens)
        for shape in SHAPES
        for mode in MEASURED
    ]
    return RagBench(curve[len(curve) // 2 :], curve, Rates(2e9, 5e8), weight_bytes=3_000_000)
