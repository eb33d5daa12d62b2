"""Scores of generated answers over documents, for each RAG layout: matches and seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from grit_jax.data.formats import CachedExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.inference.decode import ROWS_PER_CALL
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import Codec, KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import (
    DOCUMENT_CACHES,
    QUERY_CACHES,
    DocumentsRead,
    RagGenerator,
    RagPrompt,
)
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.runtime.progress import Progress, progress, say
from grit_jax.text.answer_matching import score_answer
from grit_jax.text.length import MAX_LENGTH, warn_truncated
from grit_jax.text.rag_layouts import MODES, RagMode

if TYPE_CHECKING:
    from grit_jax.rag.index import Index

WINDOW = 512  # questions whose documents' records are in memory at a time
SCORES = ("match", "exact_match", "f1", "seconds")
ATTEMPTS = 3  # to time a batch without a compilation


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How answers are generated for scoring (always greedily).

    Attributes:
      max_new_tokens: tokens of an answer.
      max_length: tokens of a document; documents of an index were limited when it was built.
      instruction, retrieval: of the search query and how it finds documents, if they are
        retrieved.
    """

    max_new_tokens: int = 16
    max_length: int = MAX_LENGTH
    instruction: str = ""
    retrieval: Retrieval = Retrieval()


def evaluate_rag(
    model: GritLM,
    examples: str | Path | Iterable[CachedExample],
    modes: Sequence[RagMode] = MODES,
    *,
    index: Index | None = None,
    k: int = 1,
    settings: AnswerSettings = AnswerSettings(),
    quiet: bool = False,
) -> dict[str, dict[str, float]]:
    """`{mode: {"match", "exact_match", "f1", "seconds"}}`: scores as fractions from 0 to 1, and
    seconds per question without compilation.

    Without an index, each question has its row's documents, so that reading is measured apart from
    search. `seconds` is then the time from the question's text to the answer, with the documents'
    records given (they are made at index time) and the query's record computed. With an index, `k`
    documents are retrieved for each question, and `seconds` includes the search. Questions are
    answered in batches; a question's seconds are its share of the batch's.

    Args:
      examples: a JSONL file of `{"docs", "text": [question, answer]}`, or its examples.
      modes: the layouts to score.
      index: where to retrieve documents; None: the rows' own documents.
      k: documents per question, with an index.

    Raises:
      GritError: an unreadable file, a bad line, no example, an unknown mode, or an index of another
        model.
    """
    rows = read_questions(examples)
    lengths = LengthCount()
    known = MODES if index is None else (*MODES, "auto")
    for mode in modes:
        if mode not in known:
            raise GritError(f"rag: unknown mode '{mode}'; known: {', '.join(known)}")
    scores: dict[RagMode, list[np.ndarray]] = {mode: [] for mode in modes}
    with progress(len(rows) * len(modes), "rag", "answers", quiet=quiet) as bar:
        for start in range(0, len(rows), WINDOW):
            window = rows[start : start + WINDOW]
            if index is None:
                generator = RagGenerator(model, settings.max_length)
                documents = row_documents(
                    generator, window, records=bool(set(modes) & set(DOCUMENT_CACHES))
                )
                if set(modes) != {"none"}:
                    lengths.add(documents)
                answer = from_rows(generator, window, documents, settings.max_new_tokens)
            else:
                answer = from_index(model, index, window, k, settings)
            for mode in modes:
                scores[mode].append(score_answers(window, mode, answer, bar))
    lengths.warn()
    return {mode: means(np.concatenate(parts)) for mode, parts in scores.items()}


def read_questions(examples: str | Path | Iterable[CachedExample]) -> list[CachedExample]:
    """The examples of a JSONL file, or the given ones.

    Raises:
      GritError: an unreadable file, a bad line, no example.
    """
    if isinstance(examples, (str, Path)):
        source = read_examples(examples, "cached")
        examples = [source[i] for i in range(len(source))]
    rows = list(examples)
    if not rows:
        raise GritError("rag: there is no question to evaluate")
    return rows


def means(scores: np.ndarray) -> dict[str, float]:
    """`{"match", "exact_match", "f1", "seconds"}`: means over the rows of `score_answers`."""
    return dict(zip(SCORES, scores[:, : len(SCORES)].mean(axis=0).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class AnswerBatch:
    """Answers to some questions, and for each whether its documents were truncated or left out."""

    answers: list[str]
    truncated: list[bool]


# (numbers of questions, layout) -> their answers
Answers = Callable[[Sequence[int], RagMode], AnswerBatch]


def score_answers(
    rows: Sequence[CachedExample], mode: RagMode, answer: Answers, bar: Progress
) -> np.ndarray:
    """Scores of each question, `[len(rows), 5]`: match, exact match, F1, seconds, and 1 if its
    documents were truncated or left out."""
    scores = np.zeros((len(rows), len(SCORES) + 1))
    # Questions of similar length are batched together: a batch is as long as its longest.
    order = sorted(
        range(len(rows)), key=lambda i: len(rows[i].question) + sum(map(len, rows[i].docs))
    )
    for start in range(0, len(rows), ROWS_PER_CALL):
        numbers = order[start : start + ROWS_PER_CALL]
        for _ in range(ATTEMPTS):
            compiled, began = _compilations(), time.perf_counter()
            batch = answer(numbers, mode)
            seconds = time.perf_counter() - began
            if _compilations() == compiled:
                break
            # A new shape was compiled, which does not count as answering: the batch is timed again.
        for i, text, truncated in zip(numbers, batch.answers, batch.truncated, strict=True):
            score = score_answer(text, rows[i].answer)
            match = score_answer(text, rows[i].expected or rows[i].answer).match
            share = seconds / len(numbers)
            scores[i] = match, score.exact_match, score.f1, share, truncated
        bar.update(len(numbers), mode)
    return scores


@dataclasses.dataclass(frozen=True)
class RowDocuments:
    """The distinct documents of some rows.

    Attributes:
      texts: the documents.
      truncated: the documents that are longer than `max_length`; every layout truncates them.
      max_length: the limit that was applied.
      records: the documents' records by text; empty if no layout reads records.
    """

    texts: list[str]
    truncated: frozenset[str]
    max_length: int
    records: dict[str, KVRecord]


def row_documents(
    generator: RagGenerator,
    rows: Sequence[CachedExample],
    codec: Codec | None = None,
    *,
    records: bool = True,
) -> RowDocuments:
    """The rows' documents, truncated to the generator's `max_length`.

    Args:
      codec: compresses the records; None: no compression.
      records: also encode each document.
    """
    texts = list(dict.fromkeys(text for row in rows for text in row.docs))
    encoder = generator.model.encoder
    formatted = encoder.format(texts, max_length=generator.max_length)
    caches: Sequence[KVRecord] = ()
    if records:
        encoded = encoder.encode_ids(formatted.ids, return_cache=True, codec=codec)
        assert encoded.caches is not None
        caches = encoded.caches
    return RowDocuments(
        texts,
        frozenset(texts[i] for i in formatted.truncated),
        formatted.max_length,
        dict(zip(texts, caches, strict=True)) if records else {},
    )


class LengthCount:
    """Counts the distinct truncated documents of all windows, for one warning at the end."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._truncated: set[str] = set()
        self._max_length = 0

    def add(self, documents: RowDocuments) -> None:
        self._texts.update(documents.texts)
        self._truncated |= documents.truncated
        self._max_length = documents.max_length

    def warn(self) -> None:
        warn_truncated(len(self._truncated), len(self._texts), self._max_length)


def from_rows(
    generator: RagGenerator,
    rows: Sequence[CachedExample],
    documents: RowDocuments,
    max_new_tokens: int,
) -> Answers:
    """A function that answers over the rows' own documents.

    Documents that do not fit the model's context are left out or truncated, with a warning.
    """
    shortened: set[int] = set()
    records = documents.records

    def answer(numbers: Sequence[int], mode: RagMode) -> AnswerBatch:
        questions = [rows[i].question for i in numbers]
        queries = generator.records(questions) if mode in QUERY_CACHES else [None] * len(numbers)
        prompts = [
            RagPrompt(
                mode,
                rows[i].question,
                () if mode == "none" else rows[i].docs,
                tuple(records[text] for text in rows[i].docs) if mode in DOCUMENT_CACHES else (),
                query,
            )
            for i, query in zip(numbers, queries, strict=True)
        ]
        generated = generator.generate(prompts, Sampling(max_new_tokens=max_new_tokens))
        truncated = []
        for i, prompt, read in zip(numbers, prompts, generated.read, strict=True):
            whole = read == DocumentsRead(len(prompt.documents))
            truncated.append(not whole or not documents.truncated.isdisjoint(prompt.documents))
            if not whole and i not in shortened:
                if not shortened:
                    say(
                        f"warning: question {rows[i].question!r:.60}: its documents do not fit the"
                        f" model's context of {generator.context} tokens; the last ones are left"
                        " out or cut (further questions are not named)"
                    )
                shortened.add(i)
        return AnswerBatch(generated.answers, truncated)

    return answer


def from_index(
    model: GritLM, index: Index, rows: Sequence[CachedExample], k: int, settings: AnswerSettings
) -> Answers:
    """A function that answers over `k` documents retrieved from an index."""
    from grit_jax.rag.answer import Asker

    asker = Asker(model, index)

    def answer(numbers: Sequence[int], mode: RagMode) -> AnswerBatch:
        answers = asker.ask(
            [rows[i].question for i in numbers],
            mode=mode,
            k=k,
            retrieval=settings.retrieval,
            instruction=settings.instruction,
            max_new_tokens=settings.max_new_tokens,
        )
        return AnswerBatch(
            [answer.answer for answer in answers], [answer.truncated for answer in answers]
        )

    return answer


_compiled = 0


def _count(event: str, duration: float, **_: object) -> None:
    global _compiled
    _compiled += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count)


def _compilations() -> int:
    """The number of programs that this process has compiled."""
    return _compiled
