"""Rows of two kinds, interleaved device by device and parted again."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.interleave import deinterleave, interleave, joined_rows, num_blocks


@pytest.mark.parametrize("mesh", [MeshConfig(1, 8, 1), MeshConfig(2, 2, 2)])
def test_interleaved_rows_come_back(devices, mesh):
    first, second = np.arange(16 * 3).reshape(16, 3), 100 + np.arange(8 * 3).reshape(8, 3)
    with jax.set_mesh(make_mesh(mesh, devices)):
        ways = num_blocks(16, 8)
        assert ways == mesh.data * mesh.fsdp and num_blocks(16, 9) == 1
        both = jax.jit(interleave)(first, second)
        # Each device's rows are its share of the first kind and then of the second.
        per = 24 // ways
        assert (
            np.asarray(both)[:per, 0]
            == [*range(0, 48 // ways, 3), *range(100, 100 + 24 // ways, 3)]
        ).all()
        for found, given in zip(
            jax.jit(deinterleave, static_argnums=(1, 2))(both, 16, 8), (first, second), strict=True
        ):
            np.testing.assert_array_equal(found, given)


def test_joined_rows(batch):
    one, other = batch.embedding.rows, batch.generative.rows
    both = joined_rows(one, dataclasses.replace(other, blocks=np.ones_like(other.tokens)))
    np.testing.assert_array_equal(both.tokens, np.concatenate([one.tokens, other.tokens]))
    np.testing.assert_array_equal(
        both.blocks, np.repeat([0, 1], len(one.tokens))[:, None] * np.ones_like(both.tokens)
    )
    assert joined_rows(one, other).blocks is None


def test_without_a_mesh_one_kind_follows_the_other():
    first, second = np.arange(6.0).reshape(3, 2), np.arange(10.0, 14.0).reshape(2, 2)
    assert num_blocks(3, 2) == 1
    both = interleave(first, second)
    np.testing.assert_array_equal(both, np.concatenate([first, second]))
    for part, given in zip(deinterleave(both, 3, 2), (first, second), strict=True):
        np.testing.assert_array_equal(part, given)
