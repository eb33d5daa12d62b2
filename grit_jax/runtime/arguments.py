"""Checks of the arguments of the Python API: one clear error instead of a TypeError from deep
inside."""

from __future__ import annotations

import math
import numbers
from typing import Any

from grit_jax.errors import GritError


def whole_number(name: str, value: Any, minimum: int | None = None) -> int:
    """`value` as an int; NumPy integers are accepted, booleans and floats are not.

    Raises:
      GritError: not a whole number, or below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise GritError(f"{name} must be a whole number, got {value!r:.60}")
    if minimum is not None and value < minimum:
        raise GritError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def finite_number(name: str, value: Any) -> float:
    """`value` as a float; NumPy numbers are accepted, booleans, NaN and infinities are not.

    Raises:
      GritError: not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise GritError(f"{name} must be a number, got {value!r:.60}")
    if not math.isfinite(value):
        raise GritError(f"{name} must be finite, got {value!r}")
    return float(value)
