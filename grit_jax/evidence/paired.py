"""Differences between two settings that were scored on the same rows, and how sure they are.

Rows are resampled as pairs: a hard question is hard in both settings, so that a difference is known
much better than either score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000  # of the bootstrap
COVERAGE = 95  # percent of the resampled values that the interval holds


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference over rows, in the unit of the function that made it.

    Attributes:
      mean: of all rows.
      standard_error: of the mean, over rows; 0 for a single row.
      low, high: the interval that holds `COVERAGE` percent of the values of resampled rows
        (percentile bootstrap).
      per_seed: one for each run, where models were trained with several seeds.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    per_seed: list[float]

    def outcome(self, limit: float) -> str:
        """ "within" or "beyond" a limit, or "not decided": the interval holds the limit."""
        if self.high <= limit:
            return "within"
        return "beyond" if self.low > limit else "not decided"

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON."""
        return dataclasses.asdict(self)


def points_lost(
    reference: Float[np.ndarray, "seeds B"], measured: Float[np.ndarray, "seeds B"]
) -> Difference:
    """Points (hundredths) that are lost from one setting to another; negative where it gains.

    Args:
      reference, measured: scores from 0 to 1 of the same rows in the same order, a line for each
        seed.
    """
    lost = 100 * (np.asarray(reference) - np.asarray(measured))
    by_row = lost.mean(axis=0)  # seeds share their rows, so rows are what is resampled
    return _spread(lambda rows: by_row[rows].mean(-1), len(by_row), lost.mean(axis=1).tolist())


def perplexity_rise(
    reference: Float[np.ndarray, "seeds B"],
    measured: Float[np.ndarray, "seeds B"],
    tokens: Int[np.ndarray, " B"],
) -> Difference:
    """By how many percent the perplexity of a file is higher in one setting than in another.

    Args:
      reference, measured: negative log-likelihoods of whole texts, a line for each seed.
      tokens: predicted tokens of each text.
    """
    rise = np.asarray(measured) - np.asarray(reference)
    by_row = rise.mean(axis=0)

    def percent(rows: np.ndarray) -> np.ndarray:
        return 100 * np.expm1(by_row[rows].sum(-1) / tokens[rows].sum(-1))

    per_seed = 100 * np.expm1(rise.sum(axis=1) / tokens.sum())
    return _spread(percent, len(tokens), per_seed.tolist())


def standard_error(values: Float[np.ndarray, " B"]) -> float:
    """Of the mean of independent values; 0 for a single one."""
    count = len(values)
    return float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else 0.0


def _spread(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, per_seed: list[float]
) -> Difference:
    """A statistic of the numbers of rows `[..., B]`, with its bootstrap."""
    resampled = np.random.default_rng(0).integers(0, rows, (RESAMPLES, rows))
    values = statistic(resampled)
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    error = float(values.std()) if rows > 1 else 0.0
    return Difference(float(statistic(np.arange(rows))), error, float(low), float(high), per_seed)
