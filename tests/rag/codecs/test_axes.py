"""Principal axes, and bits where the variance is."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.rag.codecs.axes import LEFT, AxisCodes, allocate


def test_the_quantiser_table_is_max_s():
    """What the best uniform steps leave of a Gaussian, by integration."""
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    for bits in range(1, len(LEFT)):
        left = lambda step, n=2**bits: float(
            density
            @ np.square((np.clip(np.floor(x / step + n / 2), 0, n - 1) - (n - 1) / 2) * step - x)
        )
        best = min(left(width / 2**bits) for width in np.geomspace(2.5, 9, 100))
        assert best == pytest.approx(LEFT[bits], rel=0.02)


def test_no_other_allocation_of_few_bits_loses_less():
    """Against all ways to give six bits to three axes."""
    variances = np.array([9.0, 2.0, 0.3])
    lost = lambda bits: float(sum(v * LEFT[b] for v, b in zip(variances, bits, strict=True)))
    ways = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    assert lost(allocate(variances, 6)) == pytest.approx(min(map(lost, ways)))


def test_axes_that_do_not_fill_the_last_byte_are_zero():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((400, 10)) @ rng.standard_normal((10, 10))
    codes = AxisCodes.of_sample(sample, 5)
    assert codes.axes.shape == (10, 16) and codes.bits[::8].sum() == 5
    assert (codes.axes[:, 10:] == 0).all()
    np.testing.assert_allclose(codes.axes[:, :10].T @ codes.axes[:, :10], np.eye(10), atol=1e-9)
