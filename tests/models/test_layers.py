"""The pieces of a layer against plain loops in NumPy float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.layers import (
    ACTIVATIONS,
    gated_mlp,
    linear,
    product,
    rms_norm,
    token_embeddings,
    vocabulary_logits,
)
from grit_jax.models.lora import AdaptedWeight
from grit_jax.models.quantise import quantise
from grit_jax.sharding import MeshConfig, make_mesh

B, T, D, F = 2, 3, 8, 6


@pytest.fixture()
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm(rng, zero_centered):
    x, weight = 3 * normal(rng, B, T, D), normal(rng, D)
    found = rms_norm(x, weight, 0.5, zero_centered=zero_centered)
    for b, t in np.ndindex(B, T):
        root = math.sqrt(sum(float(value) ** 2 for value in x[b, t]) / D + 0.5)
        for d in range(D):
            factor = float(weight[d]) + (1 if zero_centered else 0)
            assert found[b, t, d] == pytest.approx(x[b, t, d] / root * factor, rel=1e-5)


def test_a_norm_is_computed_in_float32_and_keeps_the_dtype():
    """In bfloat16 the squares of 4,096 ones would add up to 256."""
    x = jnp.ones((1, 4096), jnp.bfloat16)
    found = rms_norm(x, jnp.full(4096, 1.5), 0.0)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1.5)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gated_mlp(rng, name):
    layer = {"gate": normal(rng, D, F), "up": normal(rng, D, F), "down": normal(rng, F, D)}
    x = normal(rng, B, T, D)
    if name == "silu":
        act = lambda v: v / (1 + math.exp(-v))
    else:  # the tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415)
        act = lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    gate, up = (x.astype(np.float64) @ layer[part] for part in ("gate", "up"))
    expected = (np.vectorize(act)(gate) * up) @ layer["down"]
    np.testing.assert_allclose(gated_mlp(x, layer, name), expected, rtol=1e-4, atol=1e-5)


def test_linear_with_and_without_a_bias(rng):
    x, weights = normal(rng, B, T, D), {"query": normal(rng, D, F), "key": normal(rng, D, F)}
    weights["query_bias"] = normal(rng, F)
    plain = x.astype(np.float64) @ weights["key"]
    np.testing.assert_allclose(linear(x, weights, "key"), plain, rtol=1e-4, atol=1e-5)
    biased = x.astype(np.float64) @ weights["query"] + weights["query_bias"]
    np.testing.assert_allclose(linear(x, weights, "query"), biased, rtol=1e-4, atol=1e-5)
    narrow = linear(jnp.asarray(x, jnp.bfloat16), weights, "query")
    assert narrow.dtype == jnp.bfloat16  # the dtype of `x`, whatever the weight's


@pytest.mark.parametrize("base", ["float32", "int8", "int4"])
def test_linear_over_quantised_and_adapted_weights(rng, base):
    """Equal to the product with the weight that the parts add up to, as are its gradients."""
    width = 64  # one block of 4-bit weights
    x, weight = normal(rng, B, T, width), normal(rng, width, F)
    stored = weight if base == "float32" else quantise(weight, base)
    plain = weight if base == "float32" else np.asarray(stored.dequantise(jnp.float32))
    a, b = normal(rng, width, 2), normal(rng, 2, F)
    merged = plain.astype(np.float64) + 0.5 * a.astype(np.float64) @ b

    def loss(x, a, b):
        out = linear(x, {"up": AdaptedWeight(stored, a, b, None, 0.5)}, "up")
        return jnp.sum(out * out), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, a, b)
    expected = x @ merged
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    by_weight = np.einsum("btd,btf->df", x, 2 * expected)
    for found, wanted in zip(
        grads, (2 * expected @ merged.T, 0.5 * by_weight @ b.T, 0.5 * a.T @ by_weight), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(linear(x, {"up": stored}, "up"), x @ plain, rtol=1e-4, atol=1e-4)


def test_linear_over_experts(rng):
    """Rows sorted by expert, each with its expert's weight and adapter."""
    sizes, E = np.array([3, 0, 4], np.int32), 3
    x, weight = normal(rng, 7, D), normal(rng, E, D, F)
    a, b = normal(rng, E, D, 2), normal(rng, E, 2, F)
    found = linear(x, {"expert_up": AdaptedWeight(weight, a, b, None, 2.0)}, "expert_up", sizes)
    for row, expert in enumerate([0, 0, 0, 2, 2, 2, 2]):
        merged = weight[expert].astype(np.float64) + 2.0 * a[expert].astype(np.float64) @ b[expert]
        np.testing.assert_allclose(found[row], x[row] @ merged, rtol=1e-4, atol=1e-4)


def test_a_product_over_tokens_that_are_split_over_devices(rng):
    x, weight = normal(rng, 2, 8, D), normal(rng, D, F)
    expected = x.astype(np.float64) @ weight
    with jax.set_mesh(make_mesh(MeshConfig(1, 2, 1, context=4), jax.devices()[:8])):
        found = jax.jit(product)(x, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(
        lambda: product(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), jnp.float32)
    ) == jax.ShapeDtypeStruct((2, 8, F), jnp.float32)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_operands_of_bfloat16_and_sums_of_float32(rng, rows, dtype):
    """On a CPU: bfloat16 numbers, and float32 ones where the precision asks for it; the gradients'
    products, too. The truth is float64's, of the rounded operands."""
    rounded = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    x, weight, gradient = normal(rng, rows, 128), normal(rng, 128, 64), normal(rng, rows, 64)
    with jax.default_matmul_precision("bfloat16"):
        out, pull = jax.vjp(product, jnp.asarray(x, dtype), jnp.asarray(weight, dtype))
        dx, dweight = pull(jnp.asarray(gradient, dtype))
    assert out.dtype == dx.dtype == dweight.dtype == dtype
    # Results of bfloat16 are rounded once, at the end.
    within = {"rtol": 1e-5 if dtype == "float32" else 2**-8, "atol": 1e-4}
    x, weight, gradient = rounded(x), rounded(weight), rounded(gradient)
    np.testing.assert_allclose(np.asarray(out, np.float64), x @ weight, **within)
    np.testing.assert_allclose(np.asarray(dx, np.float64), gradient @ weight.T, **within)
    np.testing.assert_allclose(np.asarray(dweight, np.float64), x.T @ gradient, **within)


def test_float32_is_not_rounded_unless_the_precision_says_so(rng):
    x, weight = normal(rng, 40, 128), normal(rng, 128, 64)
    exact = x.astype(np.float64) @ weight
    error = lambda out: np.abs(np.asarray(out, np.float64) - exact).max()
    assert error(product(x, weight)) < 1e-4
    with jax.default_matmul_precision("bfloat16"):
        assert error(product(x, weight)) > 1e-3  # rounded
        narrow = product(x, weight[:, :8])  # LoRA's factors
    assert np.abs(np.asarray(narrow) - exact[:, :8]).max() < 1e-4


def test_the_embedding_table_and_the_head(rng):
    table, tokens = normal(rng, 5, D), np.array([[4, 0, 4], [1, 2, 3]])
    found = token_embeddings(tokens, {"embed": table}, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16 and found.shape == (2, 3, D)
    np.testing.assert_array_equal(found[0, 0], table[4].astype(jnp.bfloat16))
    hidden, head = normal(rng, B, T, D), normal(rng, D, 5)
    tied = vocabulary_logits(hidden, {"embed": table})
    np.testing.assert_allclose(tied, hidden @ table.T, rtol=1e-4, atol=1e-5)
    own = vocabulary_logits(jnp.asarray(hidden, jnp.bfloat16), {"embed": table, "head": head})
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, hidden @ head, atol=0.2)
