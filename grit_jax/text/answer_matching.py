"""Scores of an answer against the expected one, by SQuAD's rules (Rajpurkar et al. 2016)."""

from __future__ import annotations

import dataclasses
import re
import string
from collections import Counter


def normalise_answer(answer: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces.

    >>> normalise_answer("The  Library, an open one.")
    'library open one'
    """
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """SQuAD's scores of one answer, and `match`, the GRIT paper's: whether the normalised answer
    contains the normalised expected one."""

    match: float
    exact_match: float
    f1: float


def score_answer(answer: str, expected: str) -> AnswerScore:
    """Scores of one answer (`gritlm: rag/eval.py`, after SQuAD's evaluation script).

    >>> score_answer("It is the Nile.", "nile")
    AnswerScore(match=1.0, exact_match=0.0, f1=0.5)
    """
    prediction, reference = normalise_answer(answer), normalise_answer(expected)
    common = sum((Counter(prediction.split()) & Counter(reference.split())).values())
    f1 = 2 * common / (len(prediction.split()) + len(reference.split())) if common else 0.0
    # Two answers of which nothing is left after normalisation agree.
    return AnswerScore(
        float(reference in prediction),
        float(prediction == reference),
        f1 if prediction or reference else 1.0,
    )
