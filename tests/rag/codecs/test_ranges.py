"""Ranges that lose little."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.rag.codecs.ranges import best_ranges


def test_best_ranges_by_trying_many():
    """No other range of a grid loses clearly less; a column without bits has codes of 0."""
    rng = np.random.default_rng(0)
    columns = np.stack(
        [rng.standard_normal(500), rng.standard_t(2, 500), rng.uniform(3, 4, 500)], 1
    )

    def loss(x, low, step, levels):
        return np.square(np.clip(np.rint((x - low) / step), 0, levels - 1) * step + low - x).mean()

    for bits in (1, 2, 4):
        low, step = best_ranges(columns, np.full(3, bits))
        for x, a, width in zip(columns.T, low, step, strict=True):
            ends = np.quantile(x, [0, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25])
            others = np.quantile(x, [1, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75])
            tried = [
                loss(x, begin, (end - begin) / (2**bits - 1), 2**bits)
                for begin in ends
                for end in others
            ]
            assert loss(x, a, width, 2**bits) < 1.25 * min(tried)
    low, step = best_ranges(columns, np.array([0, 4, 8]))
    assert (low[0], step[0]) == (0, 1)
    # Eight bits leave room for an eighth of the width on both sides.
    assert low[2] == pytest.approx(columns[:, 2].min() - np.ptp(columns[:, 2]) / 8)
    assert step[2] == pytest.approx(np.ptp(columns[:, 2]) * 1.25 / 255)
