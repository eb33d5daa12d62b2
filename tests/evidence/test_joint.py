"""The single-task twins against the joint model: arithmetic and words."""

from __future__ import annotations

import pytest

from grit_jax.evidence import joint


def scores(unified, embedding, generative):
    """By twin, a dictionary a seed, from (nDCG, perplexity) pairs."""
    row = lambda pair: {
        "ndcg@10": pair[0],
        "recall@10": 0.5,
        "perplexity": pair[1],
        "steps": 240,
        "seconds": 9.0,
    }
    named = {"unified": unified, "embedding": embedding, "generative": generative}
    return {name: [row(pair) for pair in pairs] for name, pairs in named.items()}


def report(found):
    seeds = len(found["unified"])
    return {
        "corpus": {"held_out": 1187},
        "seeds": list(range(seeds)),
        "joint": {"base": found["unified"][0], "twins": found, **joint.compare(found)},
    }


def test_spread_and_paired_differences():
    found = joint.compare(
        scores(
            [(0.40, 50.0), (0.50, 40.0)], [(0.42, 99.0), (0.49, 99.0)], [(0.1, 40.0), (0.1, 50.0)]
        )
    )
    assert found["summary"]["unified"]["ndcg@10"] == pytest.approx(
        {"mean": 0.45, "min": 0.40, "max": 0.50}
    )
    assert found["summary"]["embedding"]["perplexity"] == {"mean": 99.0, "min": 99.0, "max": 99.0}
    finding, writing = found["differences"]["ndcg@10"], found["differences"]["perplexity"]
    assert (finding["twin"], writing["twin"]) == ("embedding", "generative")
    assert finding["per_seed"] == pytest.approx([0.02, -0.01])  # twin - unified, seed by seed
    assert finding["cost_per_seed"] == pytest.approx([0.02, -0.01])
    assert finding["cost"] == pytest.approx({"mean": 0.005, "min": -0.01, "max": 0.02})
    assert writing["per_seed"] == pytest.approx([-10.0, 10.0])
    assert writing["cost_per_seed"] == pytest.approx(
        [0.25, -0.2]
    )  # more perplexity is worse: relative to the twin's
    assert writing["cost"]["mean"] == pytest.approx(0.025)
    assert finding["holds"] and not writing["holds"] and not found["holds"]


@pytest.mark.parametrize(
    "unified, holds, words",
    [
        (
            (0.391, 50.4),
            True,
            ["The claim holds", "Finding loses 0.90 points", "Writing loses 0.80% of perplexity"],
        ),
        (
            (0.389, 50.4),
            False,
            ["The claim does not hold", "Finding loses 1.10 points", "the margin is 1 point"],
        ),
        (
            (0.391, 50.6),
            False,
            ["The claim does not hold", "Writing loses 1.20% of perplexity", "the margin is 1%"],
        ),
        (
            (0.500, 40.0),
            True,
            ["The claim holds", "Finding gains 10.00 points", "Writing gains 20.00% of perplexity"],
        ),
    ],
)
def test_the_verdict(unified, holds, words):
    found = joint.compare(scores([unified], [(0.4, 99.0)], [(0.1, 50.0)]))
    assert found["holds"] is holds
    said = joint.verdict(found)
    assert all(word in said for word in words), said
    assert "one seed" in said and "by seed" not in said


def test_the_verdict_says_what_the_seeds_do():
    twins = scores(
        [(0.40, 50.0), (0.40, 50.0)], [(0.402, 9.0), (0.415, 9.0)], [(0.1, 50.0), (0.1, 50.1)]
    )
    said = joint.verdict(joint.compare(twins))
    assert (
        "Finding loses 0.85 points of nDCG@10 (cost by seed +0.20 to +1.50, within the margin in 1"
        " of 2)" in said
    )
    assert said.count("differ by more than that") == 1 and "within the margin in 2 of 2" in said


def test_the_table():
    twins = scores(
        [(0.40, 50.0), (0.41, 52.0)], [(0.42, 90.0), (0.40, 94.0)], [(0.02, 50.5), (0.04, 51.5)]
    )
    said = joint.markdown(report(twins))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in said.splitlines()
        if line.startswith("|")
    ]
    assert len({len(row) for row in rows[:6]}) == 1 and len({len(row) for row in rows[6:]}) == 1
    cells = {row[0]: row[1:] for row in rows}
    assert cells["unified"] == [
        "both losses",
        "240",
        "40.50 (40.00 to 41.00)",
        "51.000 (50.000 to 52.000)",
    ]
    assert cells["generative"][2:] == ["3.00 (2.00 to 4.00)", "51.000 (50.500 to 51.500)"]
    assert cells["nDCG@10, points (embedding)"] == ["+2.00", "-1.00", "+0.50"]
    assert cells["perplexity (generative)"] == ["+0.500", "-0.500", "+0.000"]
    assert joint.verdict(report(twins)["joint"]) in said
    alone = joint.markdown(report(scores([(0.4, 50.0)], [(0.4, 50.0)], [(0.4, 50.0)])))
    assert "| 40.00 | 50.000 |" in alone and "over 1 seed," in alone
