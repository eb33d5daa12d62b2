"""Pooling per segment against loops over tokens, and the vectors' length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.pooling import normalize, pool, text_vectors
from grit_jax.models.projection import PROJECTION, PROJECTION_BIAS

METHODS = ("mean", "weightedmean", "lasttoken", "cls")


def naive_pool(hidden, member, mask, method):
    """One text: its tokens in order, those that are pooled, and the weight of each."""
    tokens = [t for t in range(len(member)) if member[t]]
    if method == "cls":
        return hidden[tokens[0]]
    if method == "lasttoken":
        return hidden[tokens[-1]]
    pooled = [t for t in tokens if mask[t]]
    weights = range(1, len(pooled) + 1) if method == "weightedmean" else [1] * len(pooled)
    return sum(w * hidden[t] for w, t in zip(weights, pooled, strict=True)) / sum(weights)


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows(method):
    """Three texts and padding in one row, their instructions of different lengths; one text in
    another."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 12, 5)).astype(np.float32)
    segments = np.array([[1] * 4 + [2] * 1 + [3] * 5 + [0] * 2, [1] * 12])
    mask = np.array(
        [[0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1], [0] * 11 + [1]], bool
    )  # padding marked, too: ignored
    out = pool(jnp.asarray(hidden), jnp.asarray(segments), jnp.asarray(mask), 4, method)
    assert out.shape == (2, 4, 5) and out.dtype == jnp.float32
    for row in range(2):
        for segment in range(1, 5):
            member = segments[row] == segment
            expected = (
                naive_pool(hidden[row], member, mask[row], method) if member.any() else np.zeros(5)
            )
            np.testing.assert_allclose(out[row, segment - 1], expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_text_that_is_not_finite_leaves_its_neighbours_alone(method, number):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 9, 5)).astype(np.float32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 3, 3, 3]])
    broken = hidden.copy()
    broken[0, 3:7, 2] = number  # segment 2 of row 0
    broken[0, 7:] = number  # padding
    params = {
        PROJECTION: jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        PROJECTION_BIAS: jnp.zeros(4),
    }
    for weights in ({}, params):
        run = lambda h, weights=weights: np.array(
            text_vectors(weights, jnp.asarray(h), segments, jnp.ones((2, 9), bool), 4, method)
        )
        out, expected = run(broken), run(hidden)
        assert np.isfinite(expected).all() and np.isnan(out[0, 1]).all()
        out[0, 1] = expected[0, 1]
        np.testing.assert_array_equal(out, expected)


def test_weights_start_after_the_instruction():
    """A mask [0, 1, 1, 1, 0, 0] weighs [0, 1, 2, 3, 0, 0] (`gritlm: gritlm/gritlm.py:210-211`)."""
    one_hot = jnp.eye(6)[None]
    segments, mask = jnp.array([[1, 1, 1, 1, 0, 0]]), jnp.array([[0, 1, 1, 1, 0, 0]], bool)
    np.testing.assert_allclose(
        pool(one_hot, segments, mask, 1, "weightedmean")[0, 0] * 6, [0, 1, 2, 3, 0, 0]
    )
    np.testing.assert_allclose(
        pool(one_hot, segments, mask, 1, "mean")[0, 0] * 3, [0, 1, 1, 1, 0, 0], rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_sums_in_float32(method):
    """4096 ones plus small differences: a bfloat16 sum would lose them."""
    hidden = jnp.full((1, 4096, 1), 1.0078125, jnp.bfloat16)  # the next number after 1
    ones = jnp.ones((1, 4096), jnp.int32)
    assert pool(hidden, ones, ones > 0, 1, method)[0, 0, 0] == pytest.approx(1.0078125, rel=1e-6)


def test_a_text_without_pooled_tokens_gives_zeros_and_finite_gradients():
    segments, mask = jnp.array([[1, 1, 2]]), jnp.array([[False, False, True]])

    def loss(hidden):
        return normalize(pool(hidden, segments, mask, 3, "mean")).sum()

    value, grad = jax.value_and_grad(loss)(jnp.ones((1, 3, 4)))
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[0, :2], 0)


def test_unknown_method():
    with pytest.raises(ValueError, match="max"):
        pool(jnp.zeros((1, 2, 3)), jnp.ones((1, 2), int), jnp.ones((1, 2), bool), 1, "max")


def test_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0], [1e18, 1e18]])
    np.testing.assert_allclose(
        normalize(x), [[0.6, 0.8], [0, 0], [1, 0], [0.5**0.5, 0.5**0.5]], rtol=1e-6
    )
    narrow = normalize(jnp.array([3.0, 4.0], jnp.bfloat16))
    assert narrow.dtype == jnp.float32


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_of_the_pooled_text_is_one_of_each_token(method):
    """The original projects every token, then pools (`gritlm: gritlm/training/model.py:147-148`);
    so does this loop."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 9, 6)).astype(np.float32)
    params = {
        PROJECTION: rng.normal(size=(6, 4)).astype(np.float32),
        PROJECTION_BIAS: rng.normal(size=4).astype(np.float32),
    }
    segments, mask = (
        np.array([[1] * 5 + [2] * 3 + [0]]),
        np.array([[0, 0, 1, 1, 1, 0, 1, 1, 0]], bool),
    )
    tokens = hidden[0].astype(np.float64) @ params[PROJECTION] + params[PROJECTION_BIAS]
    out = text_vectors(
        params, jnp.asarray(hidden), jnp.asarray(segments), jnp.asarray(mask), 2, method
    )
    for segment in (1, 2):
        expected = naive_pool(tokens, segments[0] == segment, mask[0], method)
        np.testing.assert_allclose(
            out[0, segment - 1], expected / np.linalg.norm(expected), atol=1e-6
        )
    plain = text_vectors(
        {}, jnp.asarray(hidden), jnp.asarray(segments), jnp.asarray(mask), 2, method
    )
    np.testing.assert_array_equal(plain, normalize(pool(hidden, segments, mask, 2, method)))
