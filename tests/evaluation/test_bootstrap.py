"""The paired bootstrap against the exact distribution of all resamples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from grit_jax.evaluation.bootstrap import paired_bootstrap


def test_against_all_resamples():
    """Of five queries there are 5**5 resamples."""
    this = np.array([[0.9, 0.1], [0.8, 0.3], [0.7, 0.2], [0.2, 0.9], [0.6, 0.4]])
    other = np.array([[0.5, 0.2], [0.6, 0.2], [0.1, 0.2], [0.4, 0.9], [0.5, 0.4]])
    differences = this - other
    draws = np.array(list(itertools.product(range(5), repeat=5)))
    means = differences[draws].mean(axis=1)
    observed = differences.mean(axis=0)
    compared = paired_bootstrap(this, other, resamples=40_000, seed=3)
    for column, comparison in enumerate(compared):
        exact = np.mean(
            np.abs(means[:, column] - observed[column]) >= abs(observed[column]) - 1e-12
        )
        assert comparison.p == pytest.approx(exact, abs=0.01)
        low, high = np.quantile(means[:, column], [0.025, 0.975])
        assert comparison.low == pytest.approx(low, abs=0.01)
        assert comparison.high == pytest.approx(high, abs=0.01)
        assert comparison.difference == pytest.approx(observed[column])
        assert comparison.this - comparison.other == pytest.approx(observed[column])


def test_equal_runs_do_not_differ_and_the_seed_decides():
    rng = np.random.default_rng(1)
    this, other = rng.random((30, 1)), rng.random((30, 1))
    [same] = paired_bootstrap(this, this, resamples=100)
    assert (same.p, same.low, same.high) == (1, 0, 0)
    first, again, third = (
        paired_bootstrap(this, other, resamples=500, seed=seed)[0] for seed in (5, 5, 6)
    )
    assert first == again and first != third
    # One that is always better: no resample but the observed one is as far from 0.
    [sure] = paired_bootstrap(other + 1 + this / 10, other, resamples=999)
    assert sure.p == pytest.approx(1 / 1000) and sure.low > 1
