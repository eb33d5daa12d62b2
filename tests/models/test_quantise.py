"""Quantised weights against NumPy, the normal distribution and each other."""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.quantise import BLOCK, NF4_CODES, NF4Weight, quantise, storage_axes


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rms(error, weight):
    return float(np.sqrt(np.mean(np.square(error)) / np.mean(np.square(weight))))


def parts(weight):
    return [np.asarray(part) for part in jax.tree.leaves(weight)]


def test_the_code_book_is_made_of_quantiles_of_the_normal_distribution():
    """`bitsandbytes: functional.py`, create_normal_map: 8 positive and 7 negative ones, and
    zero."""
    tail = 0.9677083
    upper = [NormalDist().inv_cdf(p) for p in np.linspace(tail, 0.5, 9)[:-1]]
    lower = [-NormalDist().inv_cdf(p) for p in np.linspace(tail, 0.5, 8)[:-1]]
    expected = np.sort([*lower, 0.0, *upper])
    np.testing.assert_allclose(NF4_CODES, expected / expected.max(), atol=2e-6)


@pytest.mark.parametrize(
    "precision, low, high, bits", [("int8", 0.005, 0.009, 8.1), ("int4", 0.090, 0.094, 4.13)]
)
def test_error_and_size_on_normal_weights(precision, low, high, bits):
    """0.092 is what bitsandbytes' own NF4 with blocks of 64 has on normal weights, with double
    quantisation or without."""
    weight = normal(1024, 512)
    quantised = jax.jit(quantise, static_argnums=1)(weight, precision)
    assert low < rms(quantised.dequantise(jnp.float32) - weight, weight) < high
    assert sum(part.nbytes for part in parts(quantised)) * 8 / weight.size < bits


def test_every_4_bit_weight_is_the_nearest_code_times_the_largest_of_its_block():
    weight = normal(3 * BLOCK, 300)  # 300 outputs: a group of scales and part of one
    codes, expected = np.array(NF4_CODES, np.float32), np.empty_like(weight)
    for block in range(3):
        inputs = slice(block * BLOCK, (block + 1) * BLOCK)
        for output in range(300):
            w = weight[inputs, output]
            scale = np.abs(w).max()
            expected[inputs, output] = codes[np.abs(w[:, None] - codes * scale).argmin(1)] * scale
    found = np.asarray(quantise(weight, "int4").dequantise(jnp.float32))
    # What is left is the rounding of the scales to 8 bits: half a step of about 1% of a scale.
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-6)
    assert np.abs(found - expected).max() > 0


def test_an_8_bit_weight_is_within_half_a_step_of_its_output():
    weight = normal(96, 40) * np.logspace(-3, 2, 40, dtype=np.float32)
    found = np.asarray(quantise(weight, "int8").dequantise(jnp.float32))
    step = np.abs(weight).max(axis=0) / 127
    assert (np.abs(found - weight) <= step * 0.5001).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_stacked_layers_are_quantised_as_each_alone(precision):
    weight = normal(3, 2 * BLOCK, 70)
    stacked = quantise(weight, precision)
    for layer in range(3):
        alone = quantise(weight[layer], precision)
        for whole, one in zip(parts(stacked), parts(alone)):
            np.testing.assert_array_equal(whole[layer], one)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_zeros_stay_zeros(precision):
    weight = normal(2 * BLOCK, 8)
    weight[:, 3] = 0
    weight[:BLOCK, 4] = 0
    found = np.asarray(quantise(weight, precision).dequantise(jnp.float32))
    assert (found[:, 3] == 0).all() and (found[:BLOCK, 4] == 0).all() and (found[:, 5] != 0).any()


def test_an_outlier_harms_its_own_block_and_outputs_near_it_alone():
    weight = normal(4 * BLOCK, 600)
    loud = weight.copy()
    loud[BLOCK + 3, 10] = 100.0
    before, after = (
        np.asarray(quantise(w, "int4").dequantise(jnp.float32)) for w in (weight, loud)
    )
    blocks = [slice(i * BLOCK, (i + 1) * BLOCK) for i in range(4)]
    for block, inputs in enumerate(blocks):
        for outputs in (slice(0, 256), slice(256, 600)):
            error = rms(after[inputs, outputs] - weight[inputs, outputs], weight[inputs, outputs])
            assert (error > 0.2) == (block == 1 and outputs.start == 0)
    assert rms(before - weight, weight) < 0.1


def test_bfloat16_is_the_rounded_float32():
    quantised = quantise(normal(BLOCK, 16), "int4")
    full = quantised.dequantise(jnp.float32)
    np.testing.assert_array_equal(quantised.dequantise(jnp.bfloat16), full.astype(jnp.bfloat16))


def test_parts_are_split_along_the_axes_of_the_weight():
    axes = ("layers", "embed", "heads")
    found = storage_axes(quantise(normal(2, 2 * BLOCK, 8), "int4"), axes)
    assert isinstance(found, NF4Weight)
    assert found.codes == ("layers", "embed", None, "heads") and found.scales == (
        "layers",
        "embed",
        "heads",
    )
    assert storage_axes(quantise(normal(2, BLOCK, 8), "int8"), axes).scales == (
        "layers",
        None,
        "heads",
    )
    assert storage_axes(normal(2, 3, 4), axes) == axes


def test_inputs_that_do_not_divide_into_blocks():
    with pytest.raises(ValueError, match="blocks of 64"):
        quantise(normal(96, 4), "int4")
