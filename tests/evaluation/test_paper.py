"""The paper's figures of GritLM-7B, by the means that the paper itself gives."""

from __future__ import annotations

import pytest

from grit_jax.evaluation.paper import BY_KEY, FIGURES
from grit_jax.text.rag_layouts import MODES


def test_the_rows_agree_with_their_means():
    assert len(BY_KEY) == len(FIGURES)
    counts = {
        "Classification": 12,
        "Clustering": 11,
        "PairClassification": 3,
        "Reranking": 4,
        "Retrieval": 15,
        "STS": 10,
        "Summarization": 1,
    }
    assert sum(counts.values()) == 56
    total = sum(BY_KEY[f"mteb {name}"].value * count for name, count in counts.items())
    assert total / 56 == pytest.approx(BY_KEY["mteb mean"].value, abs=0.05)
    generative = ("mmlu", "gsm8k", "bbh", "tydiqa", "humaneval", "alpaca_eval")
    assert sum(BY_KEY[f"lm {name}"].value for name in generative) / 6 == pytest.approx(
        55.5, abs=0.05
    )
    assert {f"rag {mode}" for mode in MODES} <= BY_KEY.keys()


def test_one_task_is_not_tasks():
    assert BY_KEY["mteb Summarization"].data == "MTEB, English, first version, 1 task"
    assert BY_KEY["mteb STS"].data == "MTEB, English, first version, 10 tasks"
