"""Paired differences: values by hand, and how often the interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.evidence.paired import Difference, perplexity_rise, points_lost, standard_error


def test_points_are_paired_by_row_and_averaged_over_seeds():
    reference = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], float)
    measured = np.array([[1, 0, 0, 1], [1, 1, 0, 0]], float)
    lost = points_lost(reference, measured)
    assert lost.per_seed == [25.0, 0.0] and lost.mean == 12.5
    # By row, averaged over the seeds: 0, 0, 0, 50. A bootstrap divides by n, not by n - 1.
    assert lost.standard_error == pytest.approx(np.std([0, 0, 0, 50]) / 2, rel=0.05)
    assert lost.low == 0 <= lost.mean <= lost.high <= 50
    # Settings that match on the same rows differ by nothing, however unsure their scores are.
    same = points_lost(reference, reference)
    assert (same.mean, same.standard_error, same.low, same.high) == (0, 0, 0, 0)


def test_the_rise_of_perplexity_is_that_of_the_whole_file():
    tokens = np.array([10, 30])
    reference, measured = np.array([[20.0, 45.0]]), np.array([[21.0, 48.0]])
    rise = perplexity_rise(reference, measured, tokens)
    whole = np.exp(69 / 40) / np.exp(65 / 40) - 1
    assert rise.mean == pytest.approx(100 * whole) and rise.per_seed == pytest.approx([rise.mean])
    # Resampling draws one text twice, or both: 0.1 nats a token each.
    assert rise.low == pytest.approx(rise.high) == pytest.approx(100 * np.expm1(0.1))


def test_the_interval_holds_the_truth_in_about_95_of_100_samples():
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        hits = (generator.random((2, 60)) < [[0.7], [0.6]]).astype(float)
        lost = points_lost(hits[:1], hits[1:])
        held += lost.low <= 10 <= lost.high
        expected = 100 * standard_error(hits[0] - hits[1])
        assert lost.standard_error == pytest.approx(expected, rel=0.12)
    assert 178 <= held <= 199


def test_an_outcome_needs_the_whole_interval():
    difference = Difference(1.0, 0.5, 0.0, 2.0, [1.0])
    assert difference.outcome(2.0) == "within" and difference.outcome(-0.1) == "beyond"
    assert difference.outcome(1.0) == "not decided"


def test_one_row_has_no_spread():
    lost = points_lost(np.array([[1.0]]), np.array([[0.0]]))
    assert (lost.mean, lost.standard_error) == (100.0, 0.0) and standard_error(np.array([1.0])) == 0
