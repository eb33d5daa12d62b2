"""What the GRIT paper reports of GritLM-7B (Muennighoff et al. 2024, arXiv 2402.09906)."""

from __future__ import annotations

import dataclasses

MODEL = "GritLM-7B"
SOURCE = "Muennighoff et al. 2024, Generative Representational Instruction Tuning, arXiv 2402.09906"


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """A percentage of the paper; `key` is what a card's figure is matched by."""

    key: str
    name: str
    data: str
    value: float


_TYPES = {
    "Classification": (12, 79.5),
    "Clustering": (11, 50.6),
    "PairClassification": (3, 87.2),
    "Reranking": (4, 60.5),
    "Retrieval": (15, 57.4),
    "STS": (10, 83.4),
    "Summarization": (1, 30.4),
}
_tasks = lambda count: f"{count} task{'s' if count > 1 else ''}"
_RETRIEVAL = "15 retrieval data sets of MTEB, English, first version"
_NATURAL_QUESTIONS = "Natural Questions, one document of 2.7 million, 0-shot"
_LAYOUTS = {
    "none": 21.00,
    "query-then-doc": 30.50,
    "doc-then-query": 30.47,
    "query": 25.46,
    "doc": 33.38,
    "query-doc": 21.63,
    "doc-query": 18.39,
}

FIGURES = (
    PaperFigure("retrieval", "nDCG@10, dense", _RETRIEVAL, 57.4),
    PaperFigure("rerank", "nDCG@10, dense, the first 10 reranked", _RETRIEVAL, 57.9),
    *(
        PaperFigure(f"mteb {name}", name, f"MTEB, English, first version, {_tasks(count)}", value)
        for name, (count, value) in _TYPES.items()
    ),
    PaperFigure("mteb mean", "mean", "MTEB, English, first version, 56 tasks", 66.8),
    PaperFigure("lm mmlu", "exact match", "MMLU, 0-shot", 57.6),
    PaperFigure("lm gsm8k", "exact match", "GSM8K, 8 examples with reasoning", 57.5),
    PaperFigure("lm bbh", "exact match", "BBH, 3 examples with reasoning", 54.8),
    PaperFigure("lm tydiqa", "F1", "TyDi QA, gold passage, 1 example", 55.4),
    PaperFigure("lm humaneval", "pass@1", "HumanEvalSynthesize, Python", 32.8),
    PaperFigure("lm alpaca_eval", "wins against text-davinci-003", "AlpacaEval 1.0", 74.8),
    *(
        PaperFigure(f"rag {mode}", f"match, layout {mode}", _NATURAL_QUESTIONS, value)
        for mode, value in _LAYOUTS.items()
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
