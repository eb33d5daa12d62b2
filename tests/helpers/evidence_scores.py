"""A MADE-UP report of the evidence on a pretrained model: no number in it was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grit_jax.evidence import answers, prompt_variants
from grit_jax.evidence.answers import AnswerCase, AnswerScores
from grit_jax.evidence.score_file import ScoreFile

QUESTIONS, QUERIES = 100, 50


def hits(case: AnswerCase) -> int:
    """How many of 100 questions match."""
    lost = {"none": 50, "query-then-doc": 5, "query-doc": 20}.get(case.mode, 0)
    return 80 - lost - 2 * (case.order == "reversed") - 3 * (case.kv == "int4")


def answer_scores(folder: Path, hits: Callable[[AnswerCase], int] = hits) -> AnswerScores:
    """Scores of all cases; the first questions match."""
    folder.mkdir(exist_ok=True)
    scores = ScoreFile(folder / "answers.json", {})
    for case in dict.fromkeys([*answers.document_cases(), *answers.codec_cases()]):
        values = [1] * hits(case) + [0] * (QUESTIONS - hits(case))
        scores.add(case.key, {"match": values, "f1": values})
    return AnswerScores([scores], QUESTIONS)


def made_up_report(folder: Path) -> dict[str, Any]:
    """A report of all parts."""
    scores = answer_scores(folder)
    prompts = ScoreFile(folder / "prompts.json", {})
    for name in prompt_variants.SEARCH_VARIANTS:
        value = 0.5 if name == "unrelated" else 0.8
        values = [value] * (QUERIES - 1) + [value - 0.1]
        prompts.add(prompt_variants.search_case(name, QUERIES), {"ndcg@10": values})
    for mode in prompt_variants.ANSWER_LAYOUTS:
        for name in prompt_variants.ANSWER_VARIANTS:
            values = [1] * 70 + [0] * 30
            case = prompt_variants.answer_case(mode, name)
            prompts.add(case, {"match": values, "f1": values})
    counts = {"questions": QUESTIONS, "questions_all": 400}
    training = [{"steps": 24, "tokens": 9000, "seconds": 700.0}]
    perplexity = {"documentation": 9.0, "chat": 3.0}
    cost = {"mean": 1.0, "standard_error": 0.5, "low": 0.1, "high": 1.9, "limit": 2.0}
    worse = answer_scores(folder / "undistilled", lambda case: 60)
    both = {"distilled": scores, "undistilled": worse}
    return {
        "base": "m",
        "documents": {
            "model": "m",
            **counts,
            "scores": scores.summary(answers.document_cases()),
            "costs": answers.document_costs(scores),
        },
        "codecs": {
            "model": "m",
            **counts,
            "scores": scores.summary(answers.codec_cases()),
            "costs": answers.codec_costs(scores),
        },
        "prompts": {
            "model": "m",
            "search": prompt_variants.search_report(prompts, QUERIES) | {"queries_all": 300},
            "answers": prompt_variants.answer_report(prompts, QUESTIONS) | counts,
        },
        "joint": {
            "seeds": [0],
            "queries": QUERIES,
            "queries_all": 300,
            "texts": {"documentation": 64, "chat": 60},
            "texts_all": {"documentation": 900, "chat": 60},
            "models": {
                name: {
                    "training": [] if name == "base" else training,
                    "ndcg@10": 0.5,
                    "perplexity": perplexity,
                }
                for name in ("base", "unified", "embedding", "generative")
            },
            "costs": [{"claim": "nDCG@10: unified", **cost, "outcome": "within"}],
        },
        "cached": {
            "seeds": [0, 1],
            **counts,
            "models": {
                name: {
                    "training": training,
                    "scores": of_model.summary(answers.document_cases()),
                    "costs": answers.document_costs(of_model),
                }
                for name, of_model in both.items()
            },
            "costs": answers.distillation_costs(scores, worse),
        },
        "commands": ["grit evidence --base m"],
    }
