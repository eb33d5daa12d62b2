"""Slices of TPUs: which there are, and what they are called where they are rented."""

from __future__ import annotations

import math

import pytest

from grit_jax.errors import GritError
from grit_jax.plan.chips import open_slices, parse_topology
from grit_jax.runtime.chips import CHIPS


@pytest.mark.parametrize(
    "name, words",
    [
        ("v5p", "not a topology"),
        ("v5p:4x", "not a topology"),
        ("v9:4x4", "unknown chip 'v9'.* v4, v5e, v5p, v6e"),
        ("v5p:4x4", "v5p slices have 3 sides, such as v5p:4x4x4"),
        ("v5e:2x2x1", "have 2 sides"),
        ("v5e:32x32", "no such slice.* the largest slice has 256 chips"),
        ("v5e:3x3", "every side is 1 or even"),
        ("v5e:0x4", "no such"),
    ],
)
def test_slices_that_there_are_not(name, words):
    with pytest.raises(GritError, match=f"--topology {name}: .*{words}"):
        parse_topology(name)


def test_slices_that_there_are():
    assert parse_topology("v5p:4x4x4") == (CHIPS["v5p"], (4, 4, 4))
    assert [parse_topology(f"{c}:1x1")[1] for c in ("v5e", "v6e")] == [(1, 1)] * 2


@pytest.mark.tpu
@pytest.mark.parametrize(
    "name, chips",
    [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:1x1", 1), ("v5e:2x1", 2), ("v5p:4x4x4", 64)],
)
def test_a_chip_is_one_device(name, chips):
    assert len(open_slices(name).devices) == math.prod(parse_topology(name)[1]) == chips
