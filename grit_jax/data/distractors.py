"""Questions over several documents: the documents of a question among distractors, which are the
other documents that match the question best.

Distractors are ranked by BM25, so that no model selects what another model is scored on. They come
best first; the question's own documents keep their order and are inserted at seeded random
positions, so that the position of a document says nothing about the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from grit_jax.data.bm25 import BM25
from grit_jax.data.formats import CachedExample
from grit_jax.data.lines import read_examples
from grit_jax.data.sources import iter_documents
from grit_jax.errors import GritError
from grit_jax.runtime.files import refuse_same_file, write_jsonl
from grit_jax.runtime.progress import progress


class Distractors:
    """Adds the best-matching other documents of a corpus to those of a question.

    Args:
      corpus: documents, each `{title} {text}`; duplicates count once.
      seed: of the positions.
    """

    def __init__(self, corpus: Iterable[str], seed: int = 0):
        self.corpus, self.seed = list(dict.fromkeys(corpus)), seed
        self._index = BM25(self.corpus)

    def among(self, example: CachedExample, k: int) -> CachedExample:
        """The example over `k` documents: its own (all of them, if there are more) and distractors.

        Distractors and positions depend on the question, `k` and the seed alone, and the
        distractors of a smaller `k` are among those of a larger one.

        Raises:
          GritError: the corpus has fewer than `k` documents.
        """
        missing = k - len(example.docs)
        if missing <= 0:
            return example
        best = self._index.search(example.question, k)
        others = [self.corpus[i] for i in best if self.corpus[i] not in example.docs][:missing]
        if len(others) < missing:
            raise GritError(
                f"question {example.question!r:.60}: expected {missing} documents beside its own,"
                f" got {len(others)}; ask for fewer (--k) or name a larger corpus (--corpus)"
            )
        generator = random.Random(f"{self.seed} {k} {example.question}")
        positions = set(generator.sample(range(k), len(example.docs)))
        own, other = iter(example.docs), iter(others)
        docs = tuple(next(own) if position in positions else next(other) for position in range(k))
        return dataclasses.replace(example, docs=docs)


def corpus_texts(path: str | Path) -> list[str]:
    """The documents of corpus lines `{"id", "title"?, "text"}`.

    Raises:
      GritError: an unreadable file or a bad line (`file:line`).
    """
    return list(iter_documents(path))


def write_rows(
    questions: str | Path,
    output: Path,
    ks: Sequence[int],
    *,
    corpus: str | Path | None = None,
    rows: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Writes training lines `{"docs", "text"}` over several documents; returns their number.

    Args:
      questions: a source of lines `{"docs", "text": [question, answer]}`; they are read in a seeded
        random order.
      ks: numbers of documents; lines take them in turn.
      corpus: a file of documents to draw distractors from; None: the documents of all questions.
      rows: the number of lines to write; None: one for each question.

    Raises:
      GritError: an unreadable file, a bad line, too few questions or documents, an output that is
        an input as well or cannot be written.
    """
    refuse_same_file(output, Path(questions), None if corpus is None else Path(corpus))
    source = read_examples(questions, "cached")
    count = len(source) if rows is None else rows
    if count > len(source):
        raise GritError(
            f"{questions}: expected at least {count} questions (--rows), got {len(source)}"
        )
    order = random.Random(f"{seed} {count}").sample(range(len(source)), count)
    examples: list[CachedExample] = [source[i] for i in order]
    all_documents = (text for i in range(len(source)) for text in source[i].docs)
    texts = all_documents if corpus is None else corpus_texts(corpus)
    distractors = Distractors(texts, seed)
    pairs = list(zip(examples, itertools.cycle(ks), strict=False))
    extended = (
        distractors.among(*pair) for pair in progress(pairs, "distractors", "rows", quiet=quiet)
    )
    return write_jsonl(output, map(_line, extended))


def _line(example: CachedExample) -> dict:
    line: dict = {"docs": list(example.docs), "text": [example.question, example.answer]}
    return line | ({"answer": example.expected} if example.expected else {})
