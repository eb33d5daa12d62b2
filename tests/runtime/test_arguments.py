"""Arguments of the Python API: NumPy numbers are numbers, everything else is one clear error."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.arguments import finite_number, whole_number


def test_numbers_of_python_and_numpy_are_accepted():
    assert whole_number("seed", np.uint8(3)) == 3 == whole_number("seed", 3, 3)
    assert finite_number("top_p", np.float32(0.5)) == 0.5 and finite_number("top_p", 1) == 1.0


@pytest.mark.parametrize("value", [None, 10.0, "3", True, np.True_, [1], {}, float("nan")])
def test_other_things_are_no_whole_numbers(value):
    with pytest.raises(GritError, match="^seed must be a whole number, got"):
        whole_number("seed", value)


@pytest.mark.parametrize("value", [None, "3", True, [1], float("nan"), float("inf")])
def test_other_things_are_no_finite_numbers(value):
    with pytest.raises(GritError, match="^top_p must be"):
        finite_number("top_p", value)


def test_the_minimum_is_named():
    with pytest.raises(GritError, match="^max_length must be at least 1, got -2$"):
        whole_number("max_length", -2, 1)
