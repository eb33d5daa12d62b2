"""Rows that train reranking from stored caches, made from pairs of query and passage.

A row is one passage and the question whether it is relevant to the query, which
`grit_jax.rag.rerank` asks in the same words: "yes" for a positive of the query, "no" for one of its
negatives.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from grit_jax.data.formats import EmbeddingExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.runtime.files import refuse_same_file, write_jsonl
from grit_jax.text.relevance import NO, YES, relevance_question


def write_relevance_rows(
    pairs: str | Path, output: Path, *, negatives: int = 1, rows: int | None = None, seed: int = 0
) -> int:
    """Writes training lines `{"docs": [passage], "text": [question, "yes" or "no"]}`; returns their
    number.

    Args:
      pairs: a source of lines `{"query", "pos", "neg"}`, read in a seeded random order. The
        instructions of queries and passages are left out.
      negatives: the most negatives of a query, drawn at random, beside one positive.
      rows: the number of lines to write; None: those of all queries.

    Raises:
      GritError: an unreadable file, a bad line, too few queries, no negatives in the file, an
        output that is the input or cannot be written.
    """
    refuse_same_file(output, Path(pairs))
    source = read_examples(pairs, "embedding")
    order = random.Random(f"{seed}").sample(range(len(source)), len(source))
    lines = list(
        itertools.islice(
            itertools.chain.from_iterable(_rows(source[i], negatives, seed) for i in order), rows
        )
    )
    if rows is not None and len(lines) < rows:
        raise GritError(
            f"{pairs}: expected enough queries for {rows} rows (--rows), got {len(lines)} rows"
        )
    if not any(line["text"][1] == NO for line in lines):
        raise GritError(
            f"{pairs}: no query has negatives; expected lines with 'neg', since without rows to"
            " refuse, every document is relevant"
        )
    return write_jsonl(output, lines)


def _rows(example: EmbeddingExample, negatives: int, seed: int) -> Iterator[dict]:
    texts = ([text.text for text in side] for side in (example.positives, example.negatives))
    return relevance_rows(example.query.text, *texts, count=negatives, seed=seed)


def relevance_rows(
    query: str, positives: Sequence[str], negatives: Sequence[str], *, count: int = 1, seed: int = 0
) -> Iterator[dict]:
    """The rows of a query: one of its positives, and at most `count` of its negatives.

    >>> [row["docs"] + row["text"][1:] for row in relevance_rows("q", ["good"], ["bad"])]
    [['good', 'yes'], ['bad', 'no']]
    """
    generator = random.Random(f"{seed} {query}")
    question = relevance_question(query)
    yield {"docs": [generator.choice(positives)], "text": [question, YES]}
    for text in generator.sample(negatives, min(count, len(negatives))):
        yield {"docs": [text], "text": [question, NO]}
