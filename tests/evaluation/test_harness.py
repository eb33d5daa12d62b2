"""The parts of lm-eval's model that need no lm-eval; the rest is in tests/peers/test_lm_eval.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.harness import (
    fitted_pairs,
    plain_results,
    require_lm_eval,
    sampling_of,
)


def test_contexts_lose_their_beginning():
    requests = [(("a", "b"), list(range(10)), [7]), (None, [1], [2, 3])]
    with pytest.warns(UserWarning, match="1 of 2 prompts .* longer than 4 tokens"):
        # The last token of a continuation is predicted and not read: 4 tokens before one.
        assert fitted_pairs(requests, 4) == [([6, 7, 8, 9], [7]), ([1], [2, 3])]


@pytest.mark.parametrize("tokens", [[], [1] * 5])
def test_a_continuation_that_cannot_be_scored(tokens):
    with pytest.raises(GritError, match=f"' B' has {len(tokens)} tokens; expected 1 to 4"):
        fitted_pairs([(("a", " B"), [1], tokens)], 4)


def test_generation_settings():
    greedy = sampling_of({"max_gen_toks": 7, "do_sample": False, "temperature": 0.7}, 3)
    assert (greedy.max_new_tokens, greedy.temperature, greedy.seed) == (7, 0.0, 3)
    drawn = sampling_of(
        {"max_gen_toks": 7, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_beams": 1}, 3
    )
    assert (drawn.temperature, drawn.top_p, drawn.top_k) == (0.7, 0.9, 0)
    for name, value in (("num_beams", 4), ("repetition_penalty", 1.2), ("penalty_alpha", 0.6)):
        with pytest.raises(GritError, match=f"{name}={value} is not supported"):
            sampling_of({"max_gen_toks": 7, name: value}, 0)


def test_results_are_json():
    results = {
        "results": {
            "t": {
                "acc,none": np.float64(0.5),
                "acc_stderr,none": float("nan"),
                "bypass,none": 999,  # what lm-eval writes where answers are not scored
            }
        },
        "groups": {},
        "configs": {"t": lambda: None},
        "n-samples": {"t": {"original": 8, "effective": np.int64(5)}},
    }
    assert plain_results(results) == {
        "results": {"t": {"acc,none": 0.5, "acc_stderr,none": None}},
        "n-samples": {"t": {"original": 8, "effective": 5}},
    }


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(GritError, match=r"needs lm-eval .* pip install 'grit-jax\[eval\]'"):
        require_lm_eval()
