"""Representations taken from where packing put them: the plain gather's, and never all of them on
one device."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training import gather_vectors as slots

CHUNKS, ROWS, SEGMENTS, D = 3, 16, 2, 4  # 96 slots


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("count, block", [(48, 4096), (40, 12)])
def test_the_gather_and_its_gradient_on_a_mesh(monkeypatch, count, block):
    """Blocks that divide the results and one that does not; a slot that is asked for twice."""
    monkeypatch.setattr(slots, "BLOCK", block)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CHUNKS, ROWS, SEGMENTS, D)).astype(np.float32)
    wanted = rng.permutation(CHUNKS * ROWS * SEGMENTS)[:count]
    wanted[7] = wanted[3]
    weights = rng.normal(size=(count, D)).astype(np.float32)
    taken = lambda v, w: (slots.gather_vectors(v, jnp.asarray(wanted)) * w).sum()
    plain = vectors.reshape(-1, D)[wanted]
    gradient = np.zeros((CHUNKS * ROWS * SEGMENTS, D), np.float32)
    np.add.at(gradient, wanted, weights)
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
    lie = NamedSharding(mesh, P(None, ("data", "fsdp")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(vectors, lie)
        both = placed, jax.device_put(weights, NamedSharding(mesh, P(("data", "fsdp"))))
        np.testing.assert_array_equal(
            jax.jit(lambda v: slots.gather_vectors(v, jnp.asarray(wanted)))(placed), plain
        )
        run = jax.jit(jax.grad(taken), out_shardings=lie)
        np.testing.assert_allclose(np.asarray(run(*both)).reshape(-1, D), gradient, rtol=1e-6)
        text = run.lower(*both).compile().as_text()
    largest = max(
        math.prod(int(n) for n in dims.split(","))
        for dims in re.findall(r"= f32\[([\d,]+)\]", text)
    )
    assert largest <= max(vectors.size / 4, min(block, count) * D)


def test_without_a_mesh_or_where_rows_do_not_divide():
    vectors = np.arange(2 * 6 * 2 * 3, dtype=np.float32).reshape(2, 6, 2, 3)
    expected = vectors.reshape(-1, 3)[[5, 0, 23]]
    np.testing.assert_array_equal(
        slots.gather_vectors(jnp.asarray(vectors), jnp.asarray([5, 0, 23])), expected
    )
    with jax.set_mesh(make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])):
        found = jax.jit(lambda v: slots.gather_vectors(v, jnp.asarray([5, 0, 23])))(vectors)
    np.testing.assert_array_equal(found, expected)
