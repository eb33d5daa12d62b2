"""Ranges of uniform codes that lose least on a sample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Fractions of a sample that may stay outside a range at each end: clipping a few outliers makes the
# steps finer for all other numbers. The fewer the levels, the more is worth clipping.
CUT_OFF = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.18, 0.22, 0.26)
# From 8 bits on, a range is widened by an eighth at each end instead, for numbers beyond the
# sample.
ROOMY, ROOM = 8, 1 / 8
SMALLEST_STEP = 1e-12


def best_ranges(
    sample: Float[np.ndarray, "N C"], bits: Int[np.ndarray, " C"]
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Low and step of the codes of each column of a sample that lose least; 0 and 1 where there are
    no bits."""
    ordered = np.sort(sample, axis=0)
    most = 2.0**bits - 1
    loss, low, step = np.full(len(bits), np.inf), np.zeros(len(bits)), np.ones(len(bits))
    for part in CUT_OFF:
        cut = int(part * len(sample))
        a, b = ordered[cut], ordered[len(sample) - 1 - cut]
        room = np.where(bits >= ROOMY, ROOM * (b - a), 0)
        a, b = a - room, b + room
        width = np.maximum((b - a) / np.maximum(most, 1), SMALLEST_STEP)
        error = np.square(
            np.clip(np.round((sample - a) / width), 0, most) * width + a - sample
        ).mean(0)
        better = (error < loss) & (bits > 0) & ((part == 0) | (bits < ROOMY))
        loss, low, step = (
            np.where(better, error, loss),
            np.where(better, a, low),
            np.where(better, width, step),
        )
    return low, step
