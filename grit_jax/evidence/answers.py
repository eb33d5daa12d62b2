"""Answers of a model over its questions' documents: by layout, number and order of documents, and
compression of their records.

A question has its own document and, for more than one, those that BM25 finds first beside it
(`data/distractors.py`), the own one at a random place. `reversed` is the same documents in the
opposite order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from grit_jax.data.distractors import Distractors, corpus_texts
from grit_jax.data.formats import CachedExample
from grit_jax.evaluation.rag import LengthCount, from_rows, read_questions, row_documents
from grit_jax.evidence.paired import points_lost, standard_error
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import Codec
from grit_jax.rag.build import calibrated
from grit_jax.rag.generator import DOCUMENT_CACHES, RagGenerator
from grit_jax.rag.record_format import NATIVE
from grit_jax.runtime.progress import progress
from grit_jax.text.answer_matching import score_answer
from grit_jax.text.rag_layouts import RagMode

Order: TypeAlias = Literal["forward", "reversed"]

KS = (1, 3, 5)
KVS = (NATIVE, "int8", "int4", "pca2")
READING: tuple[RagMode, ...] = ("query-then-doc", "doc-then-query")
# Layouts that are also scored over documents in reversed order.
REVERSED: tuple[RagMode, ...] = ("doc-then-query", *DOCUMENT_CACHES)
ALL_CACHED = "all cached layouts"
CACHED_GROUPS: dict[str, tuple[RagMode, ...]] = {mode: (mode,) for mode in DOCUMENT_CACHES}
CACHED_GROUPS[ALL_CACHED] = DOCUMENT_CACHES
MAX_NEW_TOKENS = 40  # of an answer: a sentence
BLOCK = 32  # questions whose documents' records are in memory at a time

# Points of match that a cached layout may lose against the better reading layout, by the number of
# documents, and that compression may lose against native records.
CACHING_LIMITS = {1: 2.0, 5: 3.0}
COMPRESSION_LIMIT = 1.0


@dataclasses.dataclass(frozen=True)
class AnswerCase:
    """One way to answer all questions; `k` is 0 without documents."""

    mode: RagMode
    k: int = 1
    order: Order = "forward"
    kv: str = NATIVE

    @property
    def key(self) -> str:
        """The case's name in files: `doc, k = 3, reversed, int4`, defaults left out."""
        parts: list[str] = [self.mode]
        parts += [f"k = {self.k}"] if self.k else []
        parts += [self.order] if self.order != "forward" else []
        parts += [self.kv] if self.kv != NATIVE else []
        return ", ".join(parts)


def document_cases(ks: Sequence[int] = KS) -> list[AnswerCase]:
    """Closed book, and every layout over each number of documents, those of `REVERSED` in both
    orders. The layout `query`, which reads documents as text, is left out."""
    layouts: tuple[RagMode, ...] = (*READING, *DOCUMENT_CACHES)
    cases = [AnswerCase("none", 0)]
    for k in ks:
        cases += [AnswerCase(mode, k) for mode in layouts]
        cases += [AnswerCase(mode, k, "reversed") for mode in REVERSED if k > 1]
    return cases


def codec_cases() -> list[AnswerCase]:
    """The layouts over one document's record, in every compression."""
    pairs = itertools.product(DOCUMENT_CACHES, KVS)
    return [AnswerCase(mode, kv=kv) for mode, kv in pairs]


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions that are answered.

    Attributes:
      examples: in the order in which they are scored.
      corpus: documents that distractors are chosen from and codecs are calibrated on.
    """

    examples: Sequence[CachedExample]
    corpus: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Questions:
        """Those of `rag.jsonl` and `documents.jsonl` in a held-out folder of a corpus."""
        examples = read_questions(folder / "rag.jsonl")
        return cls(examples, corpus_texts(folder / "documents.jsonl"))


def score_cases(
    model: GritLM,
    cases: Sequence[AnswerCase],
    questions: Questions,
    scores: ScoreFile,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    quiet: bool = False,
) -> None:
    """Answers every question in every case that `scores` lacks, and adds `match` and `f1`.

    Goes through the questions in blocks and writes after each case of a block.

    Raises:
      GritError: too few documents for the most distractors, or logits that are not finite.
    """
    examples = questions.examples
    codec = functools.cache(functools.partial(_codec, model, tuple(questions.corpus)))
    distractors = functools.cache(lambda: Distractors(questions.corpus))
    generator, lengths = RagGenerator(model), LengthCount()
    missing = sum(len(examples) - min(scores.count(case.key), len(examples)) for case in cases)
    with progress(missing, "answers", "answers", quiet=quiet) as bar:
        for start in range(0, len(examples), BLOCK):
            block = examples[start : start + BLOCK]
            pending = [case for case in cases if scores.count(case.key) < start + len(block)]
            for k in dict.fromkeys(case.k for case in pending):
                rows = [distractors().among(row, k) for row in block] if k > 1 else list(block)
                of_k = [case for case in pending if case.k == k]
                for kv in dict.fromkeys(case.kv for case in of_k):
                    of_kv = [case for case in of_k if case.kv == kv]
                    cached = any(case.mode in DOCUMENT_CACHES for case in of_kv)
                    documents = row_documents(
                        generator, rows, codec(kv) if cached else None, records=cached
                    )
                    if k:
                        lengths.add(documents)
                    for case in of_kv:
                        ordered = rows if case.order == "forward" else list(map(_reversed, rows))
                        numbers = range(scores.count(case.key) - start, len(block))
                        answer = from_rows(generator, ordered, documents, max_new_tokens)
                        batch = answer(numbers, case.mode)
                        scores.add(
                            case.key, answer_scores([rows[i] for i in numbers], batch.answers)
                        )
                        bar.update(len(numbers), case.key)
    lengths.warn()


def answer_scores(rows: Sequence[CachedExample], answers: Sequence[str]) -> dict[str, list[float]]:
    """`match`, of the part that must be in the answer, and `f1`, of the whole answer."""
    pairs = list(zip(rows, answers, strict=True))
    return {
        "match": [score_answer(text, row.expected or row.answer).match for row, text in pairs],
        "f1": [score_answer(text, row.answer).f1 for row, text in pairs],
    }


def _codec(model: GritLM, corpus: Sequence[str], kv: str) -> Codec | None:
    """The codec that `grit index` would use for this corpus; None for records as they are."""
    if kv == NATIVE:
        return None
    return calibrated(kv, model, len(corpus), corpus.__getitem__, RagGenerator(model).max_length)


def _reversed(row: CachedExample) -> CachedExample:
    return dataclasses.replace(row, docs=row.docs[::-1])


# ---- comparison ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AnswerScores:
    """Scores of some cases of one or more runs (seeds) of a model, on the same questions."""

    files: Sequence[ScoreFile]
    questions: int

    def of(self, case: AnswerCase, score: str = "match") -> Float[np.ndarray, "seeds B"]:
        """A case's scores, a line for each seed."""
        return np.stack([file.values(case.key, score, self.questions) for file in self.files])

    def summary(self, cases: Sequence[AnswerCase]) -> dict[str, dict[str, float]]:
        """By case the means over questions and seeds, and the standard error of `match`."""
        return {
            case.key: {
                "match": float(self.of(case).mean()),
                "f1": float(self.of(case, "f1").mean()),
                "standard_error": standard_error(self.of(case).mean(axis=0)),
            }
            for case in cases
        }

    def mean(self, cases: Sequence[AnswerCase]) -> Float[np.ndarray, "seeds B"]:
        """`match` averaged over some cases."""
        return np.mean([self.of(case) for case in cases], axis=0)

    def better_reading(self, k: int) -> AnswerCase:
        """The reading layout that scores better over `k` documents."""
        return max((AnswerCase(mode, k) for mode in READING), key=lambda case: self.of(case).mean())

    def cost(
        self,
        claim: str,
        reference: Sequence[AnswerCase],
        measured: Sequence[AnswerCase],
        limit: float | None = None,
    ) -> dict[str, Any]:
        """Points of match lost from some cases to others, each averaged, and whether that is within
        a limit."""
        return _cost(claim, self.mean(reference), self.mean(measured), limit)


def document_costs(scores: AnswerScores, ks: Sequence[int] = KS) -> list[dict[str, Any]]:
    """What caches cost beside reading, and what reversing the documents costs: by layout, and for
    all cached layouts together."""
    costs = []
    for k in ks:
        reading = scores.better_reading(k)
        for name, modes in CACHED_GROUPS.items():
            costs.append(
                scores.cost(
                    f"{name}, k = {k}, beside {reading.mode}",
                    [reading],
                    [AnswerCase(mode, k) for mode in modes],
                    CACHING_LIMITS.get(k),
                )
            )
    for k in (k for k in ks if k > 1):
        for name, modes in ({"doc-then-query": READING[1:]} | CACHED_GROUPS).items():
            costs.append(
                scores.cost(
                    f"{name}, k = {k}: reversed beside forward",
                    [AnswerCase(mode, k) for mode in modes],
                    [AnswerCase(mode, k, "reversed") for mode in modes],
                )
            )
    return costs


def codec_costs(scores: AnswerScores) -> list[dict[str, Any]]:
    """What each compression costs beside native records: by layout, and for all together."""
    return [
        scores.cost(
            f"{name}: {kv} beside {NATIVE}",
            [AnswerCase(mode) for mode in modes],
            [AnswerCase(mode, kv=kv) for mode in modes],
            COMPRESSION_LIMIT,
        )
        for name, modes in CACHED_GROUPS.items()
        for kv in KVS[1:]
    ]


def distillation_costs(
    distilled: AnswerScores, undistilled: AnswerScores, ks: Sequence[int] = KS
) -> list[dict[str, Any]]:
    """What answers lose without self-distillation: by number and order of documents, read and from
    caches."""
    groups = {"doc-then-query (no cache)": READING[1:], ALL_CACHED: DOCUMENT_CACHES}
    orders: list[tuple[int, Order]] = [(k, "forward") for k in ks]
    orders += [(k, "reversed") for k in ks if k > 1]
    costs = []
    for name, modes in groups.items():
        for k, order in orders:
            cases = [AnswerCase(mode, k, order) for mode in modes]
            claim = f"{name}, k = {k}{', reversed' if order == 'reversed' else ''}"
            costs.append(_cost(claim, distilled.mean(cases), undistilled.mean(cases), None))
    every = [AnswerCase(mode, k, order) for k, order in orders for mode in DOCUMENT_CACHES]
    costs.append(
        _cost(f"{ALL_CACHED}, every k and order", distilled.mean(every), undistilled.mean(every))
    )
    return costs


def _cost(
    claim: str,
    reference: Float[np.ndarray, "seeds B"],
    measured: Float[np.ndarray, "seeds B"],
    limit: float | None = None,
) -> dict[str, Any]:
    lost = points_lost(reference, measured)
    outcome = None if limit is None else lost.outcome(limit)
    return {"claim": claim, **lost.to_dict(), "limit": limit, "outcome": outcome}
