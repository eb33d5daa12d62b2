"""What scoring a twin of the cached layouts gives, made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from grit_jax.evaluation.rag_table import RagSweep, RagVariant
from grit_jax.evidence import cached

QUESTIONS = 200


def rows(matched: Callable[[RagVariant], int], questions: int = QUESTIONS) -> list[dict[str, Any]]:
    """A row a case of all sweeps, in which the first `matched(case)` questions matched."""
    found = []
    for modes, ks, kvs, placements in cached.SWEEPS:
        for case in RagSweep(modes, ks, kvs, placements).variants():
            hits = "1" * matched(case) + "0" * (questions - matched(case))
            match = matched(case) / questions
            scores = {"match": match, "exact_match": match, "f1": match, "seconds": 0.01}
            found.append({**dataclasses.asdict(case), **scores, "hits": hits})
    return found
