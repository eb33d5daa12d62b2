"""What answers lose by starting from an index's records, measured on questions that the model asks
itself, and kept with the index: its receipt.

Documents spread evenly over the index are given to the model, which asks a question about each
(`QUESTION`) and answers it in every layout, greedily. The answer that reads the document as text
before the question (`REFERENCE`) is what the others are compared with: their agreement is SQuAD's
F1 of the two. The other order of reading (`READING`) disagrees with it, too; what a layout over
records loses is how much less it agrees than that.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.corpus import spread
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagGenerator, RagPrompt
from grit_jax.rag.index import Index
from grit_jax.rag.index_files import RECEIPT
from grit_jax.runtime.files import write_json
from grit_jax.text.answer_matching import score_answer
from grit_jax.text.rag_layouts import RagMode

VERSION = 1  # of what is measured and how
QUESTIONS = 32  # by default
FEWEST = 8  # questions of which a mean has an error worth the name
SMALLEST = 32  # documents of an index that gets a receipt unasked
QUESTION = "{text}\n\nAsk one short question that the text above answers. Write the question alone."
QUESTION_TOKENS, ANSWER_TOKENS = 32, 32
REFERENCE: RagMode = "doc-then-query"
READING: RagMode = "query-then-doc"
MEASURED: tuple[RagMode, ...] = ("doc", "query", "query-doc", "doc-query")
POINTS = 2.0  # that `auto` lets a layout lose
GROWN = 2  # times as many documents as were measured: the receipt is measured again


@dataclasses.dataclass(frozen=True)
class LayoutQuality:
    """Points of 100, of one layout.

    Attributes:
      agreement: mean F1 with the reference.
      lost: by how much the mean is below that of reading in the other order. Negative: above.
      error: standard error of `lost`, over the questions.
    """

    agreement: float
    lost: float
    error: float


@dataclasses.dataclass(frozen=True)
class QualityReceipt:
    """The receipt of an index.

    Attributes:
      layouts: the layouts over records.
      reading: agreement of reading in the other order, in points.
      questions: how many were asked. skipped: documents about which no question was asked (the
        model wrote none), or whose record could not be read.
      documents: in the index, when it was measured.
      model: identity of the model, its weights' hash included (`RecordIdentity.to_json`).
      compression: of the records; their codec, its version and calibration.
      positions: how records are placed in a prompt.
    """

    layouts: dict[str, LayoutQuality]
    reading: float
    questions: int
    skipped: int
    documents: int
    model: dict[str, Any]
    compression: str
    positions: str = "running"
    version: int = VERSION

    def allows(self, mode: str, points: float) -> bool:
        """Whether a layout loses at most `points`, give or take the error of the measurement.
        Layouts that were not measured read documents as text."""
        layout = self.layouts.get(mode)
        return layout is None or layout.lost - layout.error <= points

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lost = ", ".join(
            f"{mode} {layout.lost:+.1f} ± {layout.error:.1f}"
            for mode, layout in self.layouts.items()
        )
        return (
            f"quality: points lost against reading the documents, over {self.questions} questions"
            f" that the model asked itself: {lost}"
        )


def receipt_of(index: Index) -> QualityReceipt | None:
    """The receipt in the index's folder; None if there is none, or it is of another model, codec or
    version."""
    try:
        values = json.loads((index.path / RECEIPT).read_text(encoding="utf-8"))
        values["layouts"] = {
            mode: LayoutQuality(**layout) for mode, layout in values["layouts"].items()
        }
        receipt = QualityReceipt(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    current = (VERSION, index.manifest.model, index.manifest.compression)
    return receipt if (receipt.version, receipt.model, receipt.compression) == current else None


def check_questions(questions: int) -> None:
    """Raises GritError for fewer questions than `FEWEST`."""
    if questions < FEWEST:
        raise GritError(
            f"--quality-questions {questions}: expected at least {FEWEST}, or 0 for no receipt"
        )


def keep_receipt(
    model: GritLM, index: Index, questions: int = QUESTIONS
) -> tuple[QualityReceipt | None, bool]:
    """The index's receipt, and whether it was measured now: if there is none that is valid, or the
    index has grown to `GROWN` times the documents that it had then.

    No receipt is measured of an index without records or with fewer documents than `FEWEST`.

    Raises:
      GritError: fewer questions than `FEWEST`.
    """
    check_questions(questions)
    if index.manifest.compression is None or len(index) < FEWEST:
        return None, False
    receipt = receipt_of(index)
    if receipt is not None and len(index) < GROWN * receipt.documents:
        return receipt, False
    receipt = measure_quality(model, index, questions)
    if receipt is not None:
        write_json(index.path / RECEIPT, receipt.to_dict())
    return receipt, receipt is not None


def measure_quality(
    model: GritLM, index: Index, questions: int = QUESTIONS
) -> QualityReceipt | None:
    """Asks and answers; None if fewer than `FEWEST` questions were had.

    Args:
      questions: how many, at most; fewer for an index with fewer documents.
    """
    rows = list(itertools.islice(spread(len(index)), questions))
    texts, records = [index.text(row) for row in rows], _records(index, rows)
    asked = _ask_itself(model, texts)
    usable = [i for i, (q, record) in enumerate(zip(asked, records, strict=True)) if q and record]
    if len(usable) < FEWEST:
        return None
    generator = RagGenerator(model, index.max_length)
    queries = generator.records([asked[i] for i in usable])
    prompts = lambda mode: [
        RagPrompt(
            mode,
            asked[i],
            (texts[i],),
            (record,) if mode in DOCUMENT_CACHES and (record := records[i]) else (),
            query if mode in QUERY_CACHES else None,
        )
        for i, query in zip(usable, queries, strict=True)
    ]
    answers = {
        mode: generator.generate(prompts(mode), Sampling(max_new_tokens=ANSWER_TOKENS)).answers
        for mode in (REFERENCE, READING, *MEASURED)
    }
    agreement = {
        mode: _agreement(given, answers[REFERENCE])
        for mode, given in answers.items()
        if mode != REFERENCE
    }
    manifest = index.manifest
    assert manifest.compression is not None
    return QualityReceipt(
        {mode: _quality(agreement[mode], agreement[READING]) for mode in MEASURED},
        round(float(agreement[READING].mean()), 2),
        len(usable),
        len(rows) - len(usable),
        len(index),
        manifest.model,
        manifest.compression,
        generator.positions,
    )


def _records(index: Index, rows: Sequence[int]) -> list[KVRecord | None]:
    """The stored records of rows, None for one that cannot be used."""
    lines = [index.documents[row] for row in rows]
    names = [f"document {line['id']!r}" for line in lines]
    fetched = index.store.fetch([line["key"] for line in lines], names)
    return [None if isinstance(record, GritError) else record for record in fetched]


def _ask_itself(model: GritLM, texts: Sequence[str]) -> list[str]:
    """A question about each text, empty where the model writes none. Long texts lose their end."""
    room = model.config.context_length // 2
    shown = [model.tokenizer.decode(model.tokenizer.encode(text)[:room]) for text in texts]
    asked = model.generate(
        [QUESTION.format(text=text) for text in shown], max_new_tokens=QUESTION_TOKENS
    )
    return [
        next((line.strip() for line in text.splitlines() if line.strip()), "") for text in asked
    ]


def _agreement(answers: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """Points, for each question."""
    pairs = zip(answers, reference, strict=True)
    return np.array([100 * score_answer(answer, other).f1 for answer, other in pairs])


def _quality(points: np.ndarray, reading: np.ndarray) -> LayoutQuality:
    lost = reading - points
    error = float(lost.std(ddof=1)) / math.sqrt(len(lost))
    return LayoutQuality(
        round(float(points.mean()), 2), round(float(lost.mean()), 2), round(error, 2)
    )
