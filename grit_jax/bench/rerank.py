"""`grit bench rerank`: seconds to judge candidates of a search from their stored records, beside
reading them as text."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.bench.texts import TextMaker
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.page_cache import drop_page_cache
from grit_jax.rag.rerank import read_relevance, reading_prompts, relevance, relevance_prompts


@dataclasses.dataclass(frozen=True)
class RerankBenchOptions:
    """What is judged.

    Attributes:
      candidates: documents of `tokens` tokens each, for a query of `query_tokens`.
      kv: how their records are stored.
      repeats: measured runs, after one that compiles; the quickest counts.
    """

    candidates: int = 50
    tokens: int = 200
    query_tokens: int = 12
    kv: str = "native"
    repeats: int = 3
    seed: int = 0


def bench_rerank(
    model: GritLM, options: RerankBenchOptions = RerankBenchOptions()
) -> dict[str, Any]:
    """Judges the same candidates both ways. The store's files are dropped from the page cache
    before each run.

    Returns:
      `candidates, doc_tokens, query_tokens, kv`; `cached` with `seconds` (of which `load_s`) and
      `tokens_read`; `read` with `seconds` and `tokens_read`; their ratio, `speedup`;
      `storage_bytes`; `most_difference` of a probability.

    Raises:
      GritError: a tokenizer that has no words to make such texts of, or no "yes" and "no".
    """
    texts = TextMaker(model, options.seed)
    query = texts.text(options.query_tokens, "query")
    documents = [texts.text(options.tokens, str(i)) for i in range(options.candidates)]
    pairs = [(query, document) for document in documents]
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder) / "corpus.jsonl", Path(folder) / "index"
        rows = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(documents)]
        corpus.write_text("\n".join(rows))
        build_index(model, corpus, path, IndexOptions(kv=options.kv), quiet=True)
        index = Index.open(path, model)
        generator = RagGenerator(model, index.max_length)
        keys = [index.documents[index.row_of(str(i))]["key"] for i in range(options.candidates)]

        def cached() -> tuple[np.ndarray, float, int]:
            drop_page_cache(index.store.path)
            began = time.perf_counter()
            fetched = index.store.fetch(keys)
            loaded = time.perf_counter() - began
            records = []
            for record in fetched:
                if isinstance(record, GritError):
                    raise record
                records.append(record)
            prompts = relevance_prompts(query, documents, records)
            scores = relevance(generator, prompts)
            return scores, loaded, sum(map(len, generator.continuations(prompts)))

        def read() -> tuple[np.ndarray, float, int]:
            prompts = reading_prompts(model, pairs).ids
            return read_relevance(model, prompts), 0.0, sum(map(len, prompts))

        cached(), read()  # compiled
        runs: dict[str, list[tuple[float, float]]] = {"cached": [], "read": []}
        found: dict[str, tuple[np.ndarray, int]] = {}
        for _ in range(options.repeats):  # in turn: other work on the machine slows both
            for name, judge in (("cached", cached), ("read", read)):
                began = time.perf_counter()
                scores, loaded, tokens = judge()
                runs[name].append((time.perf_counter() - began, loaded))
                found[name] = scores, tokens
        size = index.store.size.bytes
    best = {name: min(times) for name, times in runs.items()}
    return {
        "candidates": options.candidates,
        "doc_tokens": options.tokens,
        "query_tokens": options.query_tokens,
        "kv": options.kv,
        "cached": {
            "seconds": best["cached"][0],
            "load_s": best["cached"][1],
            "tokens_read": found["cached"][1],
        },
        "read": {"seconds": best["read"][0], "tokens_read": found["read"][1]},
        "speedup": best["read"][0] / best["cached"][0],
        "storage_bytes": size,
        "most_difference": float(np.abs(found["cached"][0] - found["read"][0]).max()),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    cached, read = result["cached"], result["read"]
    return [
        f"{result['candidates']} candidates of {result['doc_tokens']} tokens, a query of"
        f" {result['query_tokens']}:",
        f"  from records ({result['kv']}): {cached['seconds']:.3f} s, {cached['load_s']:.3f} s of"
        f" them to load {result['storage_bytes'] / 2**20:.1f} MiB; {cached['tokens_read']} tokens"
        " read",
        f"  read as text: {read['seconds']:.3f} s; {read['tokens_read']} tokens read",
        f"  {result['speedup']:.1f} times as fast from records",
    ]
