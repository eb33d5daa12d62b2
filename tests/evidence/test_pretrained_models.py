"""What joint training costs, from scores by hand; whole runs are in test_pretrained.py."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.evidence.pretrained_models import HeldOutScores, _joint_costs


def scores(ndcg: float, documentation: float, chat: float | None = None) -> HeldOutScores:
    """Equal scores of all rows: nDCG@10, and nats a token."""
    tokens = {"documentation": np.array([10, 30])}
    nll = {"documentation": documentation * tokens["documentation"]}
    if chat is not None:
        tokens["chat"], nll["chat"] = np.array([5]), chat * np.array([5])
    return HeldOutScores(np.full(8, ndcg), nll, tokens)


def test_costs_by_hand():
    by = {
        cost["claim"]: cost
        for cost in _joint_costs(
            {
                "base": [scores(0.2, 3.0, 1.0)],
                "unified": [scores(0.70, 2.1, 1.02), scores(0.72, 2.1, 1.04)],
                "embedding": [scores(0.71, 5.0, 3.0), scores(0.74, 5.0, 3.0)],
                "generative": [scores(0.2, 2.0, 1.0), scores(0.2, 2.06, 1.0)],
            }
        )
    }
    assert len(by) == 1 + 2 * 2
    search = by["nDCG@10, points: unified beside embedding"]
    assert search["per_seed"] == pytest.approx([1, 2]) and search["mean"] == pytest.approx(1.5)
    assert (search["limit"], search["outcome"]) == (2.0, "within")
    writing = by["perplexity of documentation, %: unified beside generative"]
    assert writing["per_seed"] == pytest.approx([100 * np.expm1(0.1), 100 * np.expm1(0.04)])
    assert writing["mean"] == pytest.approx(100 * np.expm1(0.07)) and writing["outcome"] == "beyond"
    kept = by["perplexity of chat, %: unified beside base"]
    assert kept["mean"] == pytest.approx(100 * np.expm1(0.03)) and kept["outcome"] == "beyond"
    documentation = by["perplexity of documentation, %: unified beside base"]
    assert documentation["mean"] < -50 and documentation["outcome"] is None


def test_without_conversations_there_is_no_chat():
    costs = _joint_costs(
        {name: [scores(0.5, 2.0)] for name in ("base", "unified", "embedding", "generative")}
    )
    assert not any("chat" in cost["claim"] for cost in costs) and len(costs) == 3
