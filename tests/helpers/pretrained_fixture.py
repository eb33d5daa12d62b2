"""A MADE-UP report of a pretrained model, for the tests of its page: no number in it was measured."""

from __future__ import annotations

from typing import Any

from report_fixture import MODES, made_up_json

from grit_jax.quickstart.report import PretrainedReport
from grit_jax.runtime.json_dataclass import from_json

KEPT = ("format", "version", "corpus", "rag", "best_constant", "index", "samples", "commands")


def made_up_pretrained(**changes: Any) -> PretrainedReport:
    """A complete report, with a training, some keys replaced."""
    return from_json(PretrainedReport, made_up_pretrained_json() | changes, "made up")


def made_up_pretrained_json() -> dict[str, Any]:
    """What its report.json holds."""
    whole = made_up_json()
    scores = lambda value: {"recall@1": value - 0.1, "recall@10": value + 0.1, "ndcg@10": value}
    search = lambda dense, queries, pool: {
        "dense": scores(dense),
        "bm25": scores(0.654),
        "hybrid": scores(0.789),
        "before": scores(0.234),
        "queries": queries,
        "queries_all": 673,
        "pool": pool,
    }
    return {key: whole[key] for key in KEPT} | {
        "settings": {"base": "smollm2", "seed": 4, "documents": None, "steps": 7},
        "model": {
            "name": "smollm2-grit",
            "base": "smollm2",
            "parameters": 134515008,
            "layers": 30,
            "hidden": 576,
            "vocab": 49152,
        },
        "training": whole["training"] | {"steps": 7},
        "retrieval": {"names": search(0.812, 120, 401), "packages": search(0.723, 80, 302)},
        "language": {
            "model": 11.1,
            "base": 13.3,
            "before": 12.2,
            "texts": 60,
            "texts_all": 1190,
        },
        "rag_retrieved": {m: {**whole["rag"][m], "match": 0.5} for m in (MODES[2], "doc")},
        "rag_questions": 32,
        "rag_questions_all": 421,
        "documents_all": 1190,
        "timings": whole["timings"],
        "seconds": 812.0,
    }
