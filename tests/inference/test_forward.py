"""Padded rows of ids: checks, and what padding changes."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.forward import forward_step, padded_rows, padding
from grit_jax.types import AttentionMode


@pytest.mark.parametrize(
    ("rows", "length", "padded"), [(1, 1, (1, 64)), (3, 64, (4, 64)), (5, 65, (8, 128))]
)
def test_shapes_come_from_a_short_list(tiny_config, rows, length, padded):
    found = padded_rows(np.ones((rows, length), int), None, tiny_config)
    assert found.tokens.shape == found.mask.shape == padded and found.mask.sum() == rows * length
    assert (found.rows, found.length) == (rows, length)
    assert padding(rows, length) == ((0, padded[0] - rows), (0, padded[1] - length))


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([[1, 2], [3]], None, "pad its rows"),
        ([1, 2], None, r"both be \[B, T\]"),
        ([[1.5]], None, "integers from 0 to"),
        ([[10**6]], None, "integers from 0 to"),
        ([[1, 2]], [[1, 2]], "1 .token. and 0"),
        ([[1, 2]], [[1]], r"got \(1, 2\) and \(1, 1\)"),
    ],
)
def test_mistakes_are_named(tiny_config, ids, mask, words):
    with pytest.raises(GritError, match=words):
        padded_rows(ids, mask, tiny_config)


def test_padding_on_either_side_changes_nothing(tiny_config, tiny_params):
    ids, run = [5, 6, 7, 8], {"config": tiny_config, "mode": AttentionMode.BIDIRECTIONAL}
    right = padded_rows([[*ids, 0, 0]], [[1] * 4 + [0] * 2], tiny_config)
    left = padded_rows([[0, 0, *ids]], [[0] * 2 + [1] * 4], tiny_config)
    one, other = (
        np.asarray(forward_step(tiny_params, rows.tokens, rows.mask, **run))
        for rows in (right, left)
    )
    np.testing.assert_allclose(one[0, :4], other[0, 2:6], atol=1e-5)
