"""Rows of a corpus that are pairs of query and passage: a summary or a question with its document
among lexically close ones, and the same passages judged as relevant or not."""

from __future__ import annotations

import random
from collections.abc import Sequence

from grit_jax.data.bm25 import BM25, words
from grit_jax.data.formats import titled
from grit_jax.data.relevance import relevance_rows
from grit_jax.pydocs.documents import Document
from grit_jax.pydocs.questions import Question
from grit_jax.text.answer_matching import normalise_answer

SUMMARY_INSTRUCTION = "Find the Python documentation that this sentence describes"
QUESTION_INSTRUCTION = "Find the Python documentation that answers this question"

MIN_REST = 60  # characters of a document without the summary that is its query
NEGATIVES = 4
# A document that shares at least this part of its words with the positive is no negative.
NEAR_WORDS = 0.6
QUESTION_EMBEDDINGS = 2  # embedding examples made from the questions of a training document
JUDGED_QUERIES = 2000  # training queries whose passages are judged as relevant or not


class _Negatives:
    """Draws negatives: lexically close documents, in the same form (with or without the summary) as
    the positives."""

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.index = BM25(strings)
        self.bags = [frozenset(words(s)) for s in strings]

    def of(self, query: str, positive: int) -> list[str]:
        negatives, bag = [], self.bags[positive]
        for other in self.index.search(query, NEGATIVES + 9):
            close = len(bag & self.bags[other]) >= NEAR_WORDS * len(bag | self.bags[other])
            if other != positive and not close:
                negatives.append(self.strings[other])
        return negatives[:NEGATIVES]


def summary_rows(documents: Sequence[Document], known: Sequence[Document] = ()) -> list[dict]:
    """Embedding examples whose query is the first sentence of a document and whose positive is the
    document without it. Sentences that begin a document of `known` are left out."""
    seen = {normalise_answer(d.summary) for d in known}
    usable = []
    for document in documents:
        key = normalise_answer(document.summary)
        # A sentence shared by two documents has no single right answer.
        if (
            len(document.rest) >= MIN_REST
            and 15 <= len(document.summary) <= 250
            and key not in seen
        ):
            seen.add(key)
            usable.append(document)
    pool = _Negatives([titled(d.id, d.text_without_summary) for d in usable])
    rows = [_embedding_row(SUMMARY_INSTRUCTION, d.summary, i, pool) for i, d in enumerate(usable)]
    return [row for row in rows if row["neg"]]


def question_rows(documents: Sequence[Document], asked: dict[str, list[Question]]) -> list[dict]:
    """Embedding examples whose query is a question of `asked` (by document id) and whose positive
    is the whole document."""
    pool = _Negatives([titled(d.id, d.text) for d in documents])
    rows = [
        _embedding_row(QUESTION_INSTRUCTION, question.text, i, pool)
        for i, d in enumerate(documents)
        for question in asked.get(d.id, [])[:QUESTION_EMBEDDINGS]
    ]
    return [row for row in rows if row["neg"]]


def _embedding_row(instruction: str, query: str, positive: int, pool: _Negatives) -> dict:
    return {
        "query": [instruction, query],
        "pos": [["", pool.strings[positive]]],
        "neg": [["", text] for text in pool.of(query, positive)],
    }


def judged_rows(rows: Sequence[dict], seed: int) -> list[dict]:
    """Cached examples that train reranking: of `JUDGED_QUERIES` embedding rows, drawn at random,
    the positive ("yes") and one negative ("no")."""
    generator = random.Random(f"{seed} judged")
    drawn = generator.sample(rows, min(JUDGED_QUERIES, len(rows)))
    return [
        judged
        for row in drawn
        for judged in relevance_rows(
            row["query"][1], *([text for _, text in row[key]] for key in ("pos", "neg")), seed=seed
        )
    ]
