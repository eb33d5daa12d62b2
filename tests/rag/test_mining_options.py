"""Options of mining that make no sense, and the text of a summary."""

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.mining_options import MiningOptions, MiningSummary


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ranks": (5, 5)}, "--range: expected 0 <= LOW < HIGH, got 5:5"),
        ({"ranks": (-1, 5)}, "--range"),
        ({"negatives": 0}, "--negatives: expected at least 1, got 0"),
        ({"judge": 1.0}, "--judge: expected a probability between 0 and 1, got 1.0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(GritError, match=message):
        MiningOptions(**options)


def test_summary_names_what_was_dropped():
    summary = MiningSummary(
        queries=3, lines=2, without_negatives=1, negatives=5, candidates=20, dropped={"why": 5}
    )
    text = str(summary)
    assert "5 negatives for 2 of 3 queries" in text and "1 queries have no negative left" in text
    assert "5 candidates (25.0%): why" in text and "judge" not in text
    assert MiningSummary(**json.loads(json.dumps(summary.to_dict()))) == summary
