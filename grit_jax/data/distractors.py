"""Questions over several documents: each row's own among distractors, the other documents that fit
its question best.

Ranked by BM25, so that no model chooses what another one is scored on. The row's own documents keep
their order and stand at seeded random places among the distractors, which come best first: neither
the first place nor the last gives the answer away.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from grit_jax.data.bm25 import BM25
from grit_jax.data.formats import CachedExample, document_text
from grit_jax.data.lines import read_examples
from grit_jax.data.sources import open_lines
from grit_jax.errors import GritError
from grit_jax.runtime.files import write_jsonl
from grit_jax.runtime.progress import progress


class Distractors:
    """Adds the best other documents of a corpus to a question's own.

    Args:
      corpus: documents, each `{title} {text}`; equal ones count once.
    """

    def __init__(self, corpus: Iterable[str], seed: int = 0):
        self.corpus, self.seed = list(dict.fromkeys(corpus)), seed
        self._index = BM25(self.corpus)

    def among(self, example: CachedExample, k: int) -> CachedExample:
        """The example over `k` documents: its own (all of them, if there are more) and distractors.

        The same question gets the same places and distractors whatever stands beside it, and those
        of a smaller `k` are among those of a larger one.

        Raises:
          GritError: the corpus has fewer documents.
        """
        missing = k - len(example.docs)
        if missing <= 0:
            return example
        found = self._index.search(example.question, k)
        others = [self.corpus[i] for i in found if self.corpus[i] not in example.docs][:missing]
        if len(others) < missing:
            raise GritError(
                f"question {example.question!r:.60}: there are {len(others)} documents beside its"
                f" own, {missing} are wanted; ask for fewer (--k) or name more (--corpus)"
            )
        generator = random.Random(f"{self.seed} {k} {example.question}")
        places = set(generator.sample(range(k), len(example.docs)))
        own, other = iter(example.docs), iter(others)
        docs = tuple(next(own) if place in places else next(other) for place in range(k))
        return dataclasses.replace(example, docs=docs)


def corpus_texts(path: str | Path) -> list[str]:
    """The documents of corpus lines `{"id", "title"?, "text"}`.

    Raises:
      GritError: an unreadable file or a bad line (`file:line`).
    """
    lines, texts = open_lines(path), []
    for i in range(len(lines)):
        try:
            texts.append(document_text(json.loads(lines[i]), lines.where(i)))
        except ValueError as error:
            raise GritError(f"{lines.where(i)}: not valid JSON: {error}") from None
    return texts


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
    """Writes training rows `{"docs", "text"}` over several documents; returns their number.

    Args:
      questions: rows `{"docs", "text": [question, answer]}`, read in a seeded random order.
      ks: numbers of documents, taken in turn.
      corpus: where distractors come from; None: the documents of all rows.
      rows: how many to write; None: one for each question.

    Raises:
      GritError: an unreadable file, a bad line, too few questions or documents, an output that is
        there or cannot be written.
    """
    source = read_examples(questions, "cached")
    count = len(source) if rows is None else rows
    if count > len(source):
        raise GritError(f"{questions}: has {len(source)} questions, --rows wants {count}")
    order = random.Random(f"{seed} {count}").sample(range(len(source)), count)
    examples: list[CachedExample] = [source[i] for i in order]  # type: ignore[misc]
    everything = (text for i in range(len(source)) for text in source[i].docs)  # type: ignore[union-attr]
    texts = everything if corpus is None else corpus_texts(corpus)
    distractors = Distractors(texts, seed)
    pairs = list(zip(examples, itertools.cycle(ks), strict=False))
    among = (
        distractors.among(*pair) for pair in progress(pairs, "distractors", "rows", quiet=quiet)
    )
    return write_jsonl(
        output, ({"docs": list(one.docs), "text": [one.question, one.answer]} for one in among)
    )
