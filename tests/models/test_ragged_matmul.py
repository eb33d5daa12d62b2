"""The product of rows sorted by expert, and its gradients, against a loop over the experts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models import ragged_matmul
from grit_jax.models.ragged_matmul import grouped_product, weight_gradient


def test_weight_gradient():
    """Of experts with many rows, few and none, tiles shared among them; rows of no expert may hold
    anything."""
    rng = np.random.default_rng(0)
    gradient = jax.jit(lambda x, given, sizes: weight_gradient(x, given, sizes, interpret=True))
    for sizes in ([100, 0, 300, 50], [512, 0, 0, 0], [0, 0, 0, 0], [1, 255, 128, 128]):
        x, given = (rng.normal(size=(512, width)).astype(np.float32) for width in (24, 40))
        x[sum(sizes) :] = given[sum(sizes) :] = np.nan
        at = np.cumsum([0, *sizes])
        expected = [x[a:b].T @ given[a:b] for a, b in zip(at[:-1], at[1:], strict=True)]
        np.testing.assert_allclose(
            gradient(x, given, np.array(sizes, np.int32)), expected, atol=1e-4
        )


@pytest.fixture()
def on_tpu(monkeypatch):
    """The path of a TPU, whose own gradient is computed by the kernel in interpret mode."""
    monkeypatch.setattr(ragged_matmul, "platform", lambda: "tpu")
    kernel = functools.partial(weight_gradient, interpret=True)
    monkeypatch.setattr(ragged_matmul, "weight_gradient", kernel)


def by_expert(sizes):
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


@pytest.mark.parametrize("sizes", [[70, 0, 50, 8], [0, 0, 128, 0], [30, 10, 20, 0]])
@pytest.mark.parametrize("path", ["cpu", "tpu"])
def test_product_and_gradients_are_those_of_each_expert_alone(request, path, sizes):
    """Rows that belong to no expert (the last ones) get no gradient, whatever they hold."""
    if path == "tpu":
        request.getfixturevalue("on_tpu")
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((128, 12), (4, 12, 20)))
    given = rng.normal(size=(128, 20)).astype(np.float32)
    used = sum(sizes)

    def loss(x, weight):
        out = grouped_product(x, weight, np.array(sizes, np.int32))
        return jnp.sum(jnp.where(np.arange(128)[:, None] < used, out, 0) * given), out

    (rows, weights), out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, weight)
    for expert, part in enumerate(by_expert(sizes)):
        np.testing.assert_allclose(out[part], x[part] @ weight[expert], atol=1e-4)
        np.testing.assert_allclose(rows[part], given[part] @ weight[expert].T, atol=1e-4)
        np.testing.assert_allclose(weights[expert], x[part].T @ given[part], atol=1e-4)
    np.testing.assert_array_equal(rows[used:], 0)
