"""RAG scores of a model behind an OpenAI-compatible server, by `/v1/chat/completions`.

The layouts that read documents as text are one message of the user, to any server. Those that read
records need a server of this package (`grit serve`) and one of its stores, whose documents it finds
itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.distractors import Distractors, corpus_texts
from grit_jax.data.formats import CachedExample
from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.rag import (
    AnswerBatch,
    Answers,
    AnswerSettings,
    read_questions,
    score_answers,
)
from grit_jax.evaluation.rag_table import RagSweep, RagTable, RagVariant
from grit_jax.runtime.progress import progress
from grit_jax.text.rag_layouts import CACHED_MODES, MODES, RagMode, compose

READING: tuple[RagMode, ...] = tuple(mode for mode in MODES if mode not in CACHED_MODES)
STORED = "stored"  # in place of a compression: the server knows it
SHORTENED = ("left out: ", "cut: ")  # how the warnings of `grit serve` about documents begin


@dataclasses.dataclass(frozen=True)
class ServedQuestions:
    """What a server is asked.

    Attributes:
      modes: layouts; None: all that the server can be asked for.
      ks: numbers of documents.
      store: where a `grit serve` finds documents; None: the rows' own documents are sent.
      corpus: where distractors come from, as in `evaluate_table`.
    """

    modes: Sequence[RagMode] | None = None
    ks: Sequence[int] = (1,)
    store: str | None = None
    corpus: str | Path | None = None

    @property
    def layouts(self) -> Sequence[RagMode]:
        """The layouts to score."""
        return self.modes or (READING if self.store is None else MODES)

    def check(self, endpoint: Endpoint) -> None:
        """Raises GritError for what the server cannot be asked."""
        if self.store is None:
            if cached := [mode for mode in self.layouts if mode not in READING]:
                raise GritError(
                    f"--modes {cached[0]}: reads records of a store; name one of a grit serve with"
                    f" --store, or take {', '.join(READING)}"
                )
            return
        if not endpoint.is_ours:
            raise GritError(
                f"--store {self.store}: {endpoint.url} is no grit serve; other servers answer over"
                f" documents that are sent as text: leave --store out ({', '.join(READING)})"
            )
        if self.corpus is not None:
            raise GritError("--corpus gives distractors to the rows' own documents; leave it out")


def evaluate_served_table(
    endpoint: Endpoint,
    examples: str | Path | Sequence[CachedExample],
    asked: ServedQuestions = ServedQuestions(),
    *,
    seed: int = 0,
    settings: AnswerSettings = AnswerSettings(),
    quiet: bool = False,
) -> RagTable:
    """Scores of every layout and number of documents, as `evaluate_table` has them.

    Seconds are those of the requests, of which `EndpointSettings.connections` are under way at a
    time: a question's are its share. Documents are sent whole; where they do not fit, the server
    refuses.

    Raises:
      GritError: as `evaluate_table`, `ServedQuestions.check`, or a server that refuses a request.
    """
    asked.check(endpoint)
    rows = read_questions(examples)
    own = [len(row.docs) for row in rows]
    sweep = RagSweep(asked.layouts, asked.ks, (STORED,))
    if asked.store is not None:
        variants = sweep.variants()
        distractors, texts = None, None
    else:
        variants = sweep.variants(max(own))
        texts = _texts(rows, asked.corpus)
        distract = max(asked.ks) > min(own) and set(asked.layouts) != {"none"}
        distractors = Distractors(texts, seed) if distract else None
    scores: dict[RagVariant, np.ndarray] = {}
    with progress(len(rows) * len(variants), "rag", "answers", quiet=quiet) as bar:
        for variant in variants:
            given = rows
            if distractors is not None and variant.k is not None:
                given = [distractors.among(row, variant.k) for row in rows]
            answer = _answers(endpoint, given, asked, variant.k, settings)
            scores[variant] = score_answers(given, variant.mode, answer, bar)
    return RagTable(scores, len(texts) if distractors and texts else None, seed)


def _texts(rows: Sequence[CachedExample], corpus: str | Path | None) -> list[str]:
    if corpus is not None:
        return corpus_texts(corpus)
    return list(dict.fromkeys(text for row in rows for text in row.docs))


def _answers(
    endpoint: Endpoint,
    rows: Sequence[CachedExample],
    asked: ServedQuestions,
    k: int | None,
    settings: AnswerSettings,
) -> Answers:
    """A function that asks the server for the answers to some questions."""

    def body(row: CachedExample, mode: RagMode) -> tuple[str, dict[str, Any]]:
        if asked.store is None:
            return _message(mode, row), {}
        retrieval = settings.retrieval
        fields: dict[str, Any] = {"store": asked.store, "mode": mode, "k": k or 1}
        fields |= {"search": retrieval.search, "instruction": settings.instruction or None}
        fields |= {"rerank": retrieval.rerank or None, "where": retrieval.where or None}
        return row.question, {name: value for name, value in fields.items() if value is not None}

    def answer(numbers: Sequence[int], mode: RagMode) -> AnswerBatch:
        def ask(number: int) -> tuple[str, bool]:
            text, fields = body(rows[number], mode)
            reply = endpoint.post(
                "/chat/completions",
                {
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": settings.max_new_tokens,
                    "temperature": 0,
                    **fields,
                },
            )
            return _answer_of(endpoint, reply)

        found = list(endpoint.map(ask, numbers, "rag"))
        return AnswerBatch([text for text, _ in found], [cut for _, cut in found])

    return answer


def _message(mode: RagMode, row: CachedExample) -> str:
    """What the user's turn of a reading layout says."""
    layout = compose(mode, row.question, () if mode == "none" else row.docs)
    return "".join(part.text for part in layout.continuation[1:-1])


def _answer_of(endpoint: Endpoint, reply: dict[str, Any]) -> tuple[str, bool]:
    """The answer, and whether its documents were cut or left out."""
    try:
        text = reply["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise GritError(f"{endpoint.url}/chat/completions: the reply has no message") from None
    warned = (reply.get("grit") or {}).get("warnings") or []
    return str(text), any(str(warning).startswith(SHORTENED) for warning in warned)
