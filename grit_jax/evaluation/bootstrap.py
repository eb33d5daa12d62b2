"""Whether two runs differ: the paired bootstrap over queries."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean of a score in two runs over the same queries.

    Attributes:
      this, other: the means. difference: this - other.
      low, high: the 95% interval of the difference, by percentiles of the resampled means.
      p: two-sided; see `paired_bootstrap`.
    """

    this: float
    other: float
    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    this: Float[np.ndarray, "Q S"],
    other: Float[np.ndarray, "Q S"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compares two runs, score by score (Efron and Tibshirani 1993, sections 13.3 and 16.4).

    Queries are drawn with replacement, the same ones for every score. The p-value is the share of
    resamples whose mean difference, shifted so that the runs do not differ, is at least as far from
    0 as the observed one; the observed one counts as a resample, so that p is never 0.

    Args:
      this, other: scores, a row a query and a column a score.
    """
    Q, S = this.shape
    differences = np.asarray(this, np.float64) - np.asarray(other, np.float64)
    observed = differences.mean(axis=0)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, S))
    for i in range(resamples):
        means[i] = np.bincount(rng.integers(0, Q, Q), minlength=Q) @ differences / Q
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    # Rounding must not make a shifted mean smaller than the observed one that it equals.
    extreme = np.abs(means - observed) >= np.abs(observed) * (1 - 1e-12) - 1e-15
    p = (1 + extreme.sum(axis=0)) / (resamples + 1)
    return [
        Comparison(*map(float, row))
        for row in zip(this.mean(axis=0), other.mean(axis=0), observed, low, high, p, strict=True)
    ]
