"""Model FLOPs: pairs that attention computes, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.training.flops import trained_flops, visible_pairs


def counted(length: int, bidirectional: int, window: int | None) -> int:
    """Pairs (i, j): j is no later than i, or both stand in the bidirectional part at the start."""
    return sum(
        (j <= i or (i < bidirectional and j < bidirectional))
        and (window is None or abs(i - j) < window)
        for i in range(length)
        for j in range(length)
    )


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
def test_pairs_that_see_each_other(window):
    lengths = [1, 2, 7, 9, 9, 12]
    bidirectional = [0, 2, 7, 0, 4, 11]
    expected = [counted(*both, window) for both in zip(lengths, bidirectional, strict=True)]
    assert [visible_pairs(*both, window) for both in zip(lengths, bidirectional)] == expected
    together = visible_pairs(np.array(lengths), np.array(bidirectional), window)
    assert together.tolist() == expected


def test_a_backward_pass_is_two_forward_ones_or_one_without_weight_gradients():
    assert trained_flops(10, 3, None, trained=False) == trained_flops(10, 3, 2, trained=False) == 13
    assert trained_flops(10, 3, None, trained=True) == 39
    # LoRA: frozen matrices forward and for the inputs' gradient, all else three times.
    assert trained_flops(10, 3, 2, trained=True) == 10 * 2 + 3 * 3 + 2 * 3
