"""Retrieval scores on an embedding file: its queries against the pool of all its passages."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from grit_jax.data.bm25 import BM25
from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.rag.search.exact import ExactSearch, SearchSettings
from grit_jax.runtime.progress import progress
from grit_jax.text.length import MAX_LENGTH, length_limit, warn_truncated

NDCG_AT = 10

Examples: TypeAlias = str | Path | Iterable[EmbeddingExample]


@dataclasses.dataclass(frozen=True)
class Pool:
    """A retrieval task: queries, the distinct passages of all rows, and for each query the numbers
    of the passages that answer it."""

    queries: list[Text]
    texts: list[Text]
    relevant: list[frozenset[int]]


def pool_of(examples: Examples) -> Pool:
    """The retrieval task of an embedding file: each row's query is to find the row's `pos`.

    Raises:
      GritError: an unreadable file, a bad line, or no example at all.
    """
    rows = (
        read_examples(examples, "embedding")
        if isinstance(examples, (str, Path))
        else list(examples)
    )
    rows = [rows[i] for i in range(len(rows))]
    if not rows:
        raise GritError("retrieval: there is no example to evaluate")
    numbers: dict[Text, int] = {}
    # A bare string and a text with an empty instruction are the same passage.
    number = lambda text: numbers.setdefault(Text(text.instruction or "", text.text), len(numbers))
    relevant = []
    for row in rows:
        relevant.append(frozenset(number(text) for text in row.positives))
        for text in row.negatives:
            number(text)
    return Pool([row.query for row in rows], list(numbers), relevant)


@dataclasses.dataclass(frozen=True)
class RetrievalScore:
    """`{"recall@1", "recall@10", "ndcg@10"}`, and the number of queries and passages that were
    truncated to `max_length`."""

    scores: dict[str, float]
    truncated: int


def evaluate_retrieval(model: GritLM, examples: Examples, **options: Any) -> dict[str, float]:
    """`score_retrieval(...).scores`."""
    return score_retrieval(model, examples, **options).scores


def score_retrieval(
    model: GritLM,
    examples: Examples,
    *,
    ks: Sequence[int] = (1, 10),
    max_length: int = MAX_LENGTH,
    search: SearchSettings = SearchSettings(),
    quiet: bool = False,
) -> RetrievalScore:
    """Recall at each of `ks` and nDCG at 10 of a model, as fractions from 0 to 1.

    Args:
      examples: a JSONL file in the embedding format, or its examples.
      max_length: tokens of a text, instruction and tags included; longer texts are truncated,
        counted and warned about. The default is lowered to the model's context if that is shorter.
      search: the precision and the number of dimensions of the search.

    Raises:
      GritError: an unreadable file, a bad line, no example, a `max_length` beyond the model's
        context, an instruction longer than `max_length`, a vector that is not finite, or fewer
        dimensions than `search` asks for.
    """
    pool = pool_of(examples)
    options = DenseOptions(max_length, search, quiet)
    rankings, truncated = dense_rankings(model, pool, max(*ks, NDCG_AT), options)
    return RetrievalScore(score_rankings(rankings, pool.relevant, ks), truncated)


def bm25_retrieval(
    examples: Examples, ks: Sequence[int] = (1, 10), *, quiet: bool = False
) -> dict[str, float]:
    """The same scores for BM25, over the texts without their instructions."""
    pool = pool_of(examples)
    index = BM25([text.text for text in pool.texts])
    k = max(*ks, NDCG_AT)
    queries = progress([query.text for query in pool.queries], "bm25", "queries", quiet=quiet)
    return score_rankings([index.search(query, k) for query in queries], pool.relevant, ks)


@dataclasses.dataclass(frozen=True)
class DenseOptions:
    """How a model searches; see `score_retrieval`."""

    max_length: int = MAX_LENGTH
    search: SearchSettings = SearchSettings()
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class PoolVectors:
    """Vectors `[N, D]` of a pool's queries and passages, and how many texts were truncated."""

    queries: np.ndarray
    passages: np.ndarray
    truncated: int


def encode_pool(model: GritLM, pool: Pool, options: DenseOptions = DenseOptions()) -> PoolVectors:
    """The vectors of all texts of a pool.

    Raises:
      GritError: see `score_retrieval`.
    """
    options.search.check(model.embedding_width)
    max_length = length_limit(options.max_length, model.config.context_length)
    texts = [*pool.queries, *pool.texts]
    vectors, truncated = encode_texts(model, texts, max_length, options.quiet)
    warn_truncated(truncated, len(texts), max_length)
    count = len(pool.queries)
    return PoolVectors(vectors[:count], vectors[count:], truncated)


def dense_rankings(
    model: GritLM, pool: Pool, k: int, options: DenseOptions = DenseOptions()
) -> tuple[list[list[int]], int]:
    """For each query the `k` passages most similar to it, best first; and how many texts were
    truncated."""
    vectors = encode_pool(model, pool, options)
    search = ExactSearch(vectors.passages, model.mesh, settings=options.search)
    result = search.search(vectors.queries, min(k, len(vectors.passages)))
    return result.rows.tolist(), vectors.truncated


def score_rankings(
    rankings: Sequence[Sequence[int]],
    relevant: Sequence[Iterable[int]],
    ks: Sequence[int] = (1, 10),
) -> dict[str, float]:
    """`recall@k` for each of `ks` and `ndcg@10`, averaged over queries.

    Args:
      rankings: for each query, numbers of passages, best first; at least `max(ks, 10)` of them
        where there are so many.
      relevant: for each query, the passages that answer it.
    """
    sets = [frozenset(numbers) for numbers in relevant]
    pairs = list(zip(rankings, sets, strict=True))
    scores = {f"recall@{k}": float(np.mean([recall(r, g, k) for r, g in pairs])) for k in ks}
    scores[f"ndcg@{NDCG_AT}"] = float(np.mean([ndcg(r, g, NDCG_AT) for r, g in pairs]))
    return scores


def recall(ranking: Sequence[int], relevant: frozenset[int], k: int) -> float:
    """The share of `relevant` among the first `k`."""
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def ndcg(ranking: Sequence[int], relevant: frozenset[int], k: int) -> float:
    """Normalised discounted cumulative gain at `k` with gains 0 and 1, as trec_eval (Järvelin and
    Kekäläinen 2002)."""
    gain = sum(_discount(rank) for rank, number in enumerate(ranking[:k]) if number in relevant)
    return gain / sum(_discount(rank) for rank in range(min(k, len(relevant))))


def encode_texts(
    model: GritLM, texts: Sequence[Text], max_length: int, quiet: bool = False
) -> tuple[Float[np.ndarray, "N D"], int]:
    """The vectors of texts (encoded together if they share an instruction), and how many texts were
    truncated."""
    by_instruction: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        by_instruction[text.instruction or ""].append(i)
    vectors = np.zeros((len(texts), model.embedding_width), np.float32)
    truncated = 0
    for instruction, numbers in by_instruction.items():
        formatted = model.encoder.format([texts[i].text for i in numbers], instruction, max_length)
        truncated += len(formatted.truncated)
        vectors[numbers] = model.encoder.encode_ids(
            formatted.ids,
            [formatted.pool_start] * len(numbers),
            names=[f"text {texts[i].text!r:.60}" for i in numbers],
            progress=not quiet,
        ).vectors
    return vectors, truncated


@functools.cache
def _discount(rank: int) -> float:
    return 1 / float(np.log2(rank + 2))
