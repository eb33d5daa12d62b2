"""The drawing of charts: axes, smoothing, thinning."""

from __future__ import annotations

import re

import pytest

from grit_jax.quickstart.report import charts


def test_long_curves_stay_small_and_keep_their_spikes():
    points = [(float(s), 1.0) for s in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    drawing = charts.curve("c", "t", "w", points)
    assert len(drawing) < 20_000
    raw = re.search(r'points="([^"]*)" class="raw"', drawing)
    assert raw
    assert min(float(point.split(",")[1]) for point in raw[1].split()) < 20


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.031), (2.9, 3.1), (0, 12345), (5, 5), (0, 0)]
)
def test_ticks_cover_the_range_with_round_values(low, high):
    values = charts.ticks(low, high)
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9 and 2 <= len(values) <= 7
    assert len(set(charts.tick_texts(values))) == len(values)


def test_smoothing_keeps_constants_and_length():
    assert charts.smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert charts.smoothed([1.0]) == [1.0]
    assert charts.smoothed([]) == []
