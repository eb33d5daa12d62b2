"""Answers over documents, layout by layout: how many are right and how long each takes."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
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
from grit_jax.pydocs.questions import normalise
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagGenerator, RagPrompt
from grit_jax.runtime.progress import Progress, progress
from grit_jax.text.rag_layouts import MODES, RagMode

if TYPE_CHECKING:
    from grit_jax.rag.index import Index

WINDOW = 512  # questions whose documents' records are held at a time
SCORES = ("match", "exact_match", "f1", "seconds")
ATTEMPTS = 3  # for a batch during which nothing was compiled


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """SQuAD's scores of one answer; `match` is the paper's: the gold answer stands in the answer,
    both normalised."""

    match: float
    exact_match: float
    f1: float


def score_answer(answer: str, gold: str) -> AnswerScore:
    """Scores of one answer (`gritlm: rag/eval.py`, after SQuAD's evaluation script)."""
    said, wanted = normalise(answer), normalise(gold)
    common = sum((Counter(said.split()) & Counter(wanted.split())).values())
    f1 = 2 * common / (len(said.split()) + len(wanted.split())) if common else 0.0
    # Two answers of which nothing is left after normalisation agree.
    return AnswerScore(float(wanted in said), float(said == wanted), f1 if said or wanted else 1.0)


def evaluate_rag(
    model: GritLM,
    examples: str | Path | Iterable[CachedExample],
    modes: Sequence[RagMode] = MODES,
    k: int = 1,
    index: Index | None = None,
    max_new_tokens: int = 16,
    *,
    instruction: str = "",
    max_length: int = 512,
    quiet: bool = False,
) -> dict[str, dict[str, float]]:
    """`{mode: {"match", "exact_match", "f1", "seconds"}}`: scores as fractions, seconds a question,
    compiling left out.

    Without an index the documents are those of each row: reading is measured apart from search, and
    `seconds` goes from the question's text to the answer, documents' records at hand (they are made
    at index time) and the query's record made anew. With an index `k` documents are retrieved for
    each question, and `seconds` counts that too. Questions are answered in batches; their seconds
    are shares of the batch's.

    Args:
      examples: a JSONL file of `{"docs", "text": [question, answer]}`, or its examples.
      instruction: of the search query.
      max_length: tokens of a document (an index brings its own).

    Raises:
      GritError: an unreadable file, a bad line, no example, an unknown mode, an index of another
        model.
    """
    rows = read_questions(examples)
    known = MODES if index is None else (*MODES, "auto")
    for mode in modes:
        if mode not in known:
            raise GritError(f"rag: unknown mode '{mode}'; known: {', '.join(known)}")
    scores: dict[RagMode, list[np.ndarray]] = {mode: [] for mode in modes}
    with progress(len(rows) * len(modes), "rag", "answers", quiet=quiet) as bar:
        for start in range(0, len(rows), WINDOW):
            part = rows[start : start + WINDOW]
            if index is None:
                records = (
                    document_records(model, part, max_length)
                    if set(modes) & set(DOCUMENT_CACHES)
                    else {}
                )
                answer = from_rows(RagGenerator(model, max_length), part, records, max_new_tokens)
            else:
                answer = from_index(model, index, part, max_new_tokens, k, instruction)
            for mode in modes:
                scores[mode].append(score_answers(part, mode, answer, bar))
    return {mode: means(np.concatenate(found)) for mode, found in scores.items()}


def read_questions(examples: str | Path | Iterable[CachedExample]) -> list[CachedExample]:
    """The examples of a JSONL file, or the given ones.

    Raises:
      GritError: an unreadable file, a bad line, no example.
    """
    if isinstance(examples, (str, Path)):
        source = read_examples(examples, "cached")
        examples = [source[i] for i in range(len(source))]  # type: ignore[misc]
    rows = list(examples)
    if not rows:
        raise GritError("rag: there is no question to evaluate")
    return rows


def means(scores: np.ndarray) -> dict[str, float]:
    """`{"match", "exact_match", "f1", "seconds"}` of what `score_answers` gives."""
    return dict(zip(SCORES, scores.mean(axis=0).tolist(), strict=True))


# Numbers of questions of one window, and a layout, to their answers.
Answers = Callable[[Sequence[int], RagMode], list[str]]


def score_answers(
    rows: Sequence[CachedExample], mode: RagMode, answer: Answers, bar: Progress
) -> np.ndarray:
    """Match, exact match, F1 and seconds of each question, `[len(rows), 4]`."""
    scores = np.zeros((len(rows), len(SCORES)))
    # Those of a length together: a batch is as long as its longest.
    order = sorted(
        range(len(rows)), key=lambda i: len(rows[i].question) + sum(map(len, rows[i].docs))
    )
    for start in range(0, len(rows), ROWS_PER_CALL):
        numbers = order[start : start + ROWS_PER_CALL]
        for _ in range(ATTEMPTS):
            compiled, began = _compilations(), time.perf_counter()
            answers = answer(numbers, mode)
            seconds = time.perf_counter() - began
            if _compilations() == compiled:
                break
            # A shape seen for the first time was compiled: that is no part of answering, so it is
            # answered again.
        for i, text in zip(numbers, answers, strict=True):
            score = score_answer(text, rows[i].answer)
            scores[i] = score.match, score.exact_match, score.f1, seconds / len(numbers)
        bar.update(len(numbers), mode)
    return scores


def document_records(
    model: GritLM, rows: Sequence[CachedExample], max_length: int, codec: Codec | None = None
) -> dict[str, KVRecord]:
    """The records of the rows' documents by text, all distinct ones encoded once, packed by `codec`
    if there is one."""
    texts = list(dict.fromkeys(text for row in rows for text in row.docs))
    formatted = model.encoder.format(texts, max_length=max_length)
    records = model.encoder.encode_ids(formatted.ids, return_cache=True, codec=codec).caches
    assert records is not None
    return dict(zip(texts, records, strict=True))


def from_rows(
    generator: RagGenerator,
    rows: Sequence[CachedExample],
    records: dict[str, KVRecord],
    max_new_tokens: int,
) -> Answers:
    """Answers over the rows' own documents; `records` are theirs, where a layout reads them."""

    def answer(numbers: Sequence[int], mode: RagMode) -> list[str]:
        questions = [rows[i].question for i in numbers]
        queries = generator.records(questions) if mode in QUERY_CACHES else [None] * len(numbers)
        rag_prompts = [
            RagPrompt(
                mode,
                rows[i].question,
                () if mode == "none" else rows[i].docs,
                tuple(records[text] for text in rows[i].docs) if mode in DOCUMENT_CACHES else (),
                query,
            )
            for i, query in zip(numbers, queries, strict=True)
        ]
        return generator.generate(rag_prompts, Sampling(max_new_tokens=max_new_tokens)).answers

    return answer


def from_index(
    model: GritLM,
    index: Index,
    rows: Sequence[CachedExample],
    max_new_tokens: int,
    k: int,
    instruction: str,
) -> Answers:
    """Answers over retrieved documents."""
    from grit_jax.rag.answer import Asker

    asker = Asker(model, index)

    def answer(numbers: Sequence[int], mode: RagMode) -> list[str]:
        questions = [rows[i].question for i in numbers]
        answers = asker.ask(
            questions, mode=mode, k=k, instruction=instruction, max_new_tokens=max_new_tokens
        )
        return [found.answer for found in answers]

    return answer


_compiled = 0


def _count(event: str, duration: float, **_: object) -> None:
    global _compiled
    _compiled += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count)


def _compilations() -> int:
    """How many programs this process has compiled."""
    return _compiled
