"""Weights in 8 bits for inference, against NumPy in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models import int8
from grit_jax.models.config import ModelConfig
from grit_jax.models.int8 import (
    INT8_WEIGHTS,
    Int8Builder,
    Int8Table,
    abstract_int8,
    blocked_product,
    in_blocks,
    quantise_rows,
)
from grit_jax.models.layers import linear, token_embeddings, vocabulary_logits
from grit_jax.models.losses import token_losses
from grit_jax.models.parameters import PARAMETER_AXES, init_params, parameter_shapes
from grit_jax.models.quantise import Int8Weight, quantise, storage_axes
from grit_jax.models.transformer import Transformer
from grit_jax.sharding import MeshConfig, fitted_sharding, make_mesh, put_rows
from grit_jax.types import AttentionMode


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(weight):
    """The weight in float64, by the definition."""
    return np.asarray(weight.codes, np.float64) * np.asarray(weight.scales, np.float64)


def quantised(params):
    """A model's weights as they are read with dtype int8."""
    result = dict(params)
    for name in INT8_WEIGHTS:
        if name not in params:
            continue
        weight = np.asarray(params[name])
        builder = Int8Builder(name, weight.shape)
        for index in np.ndindex(weight.shape[:-2]):
            builder.add(index, weight[index] if name == "embed" else weight[index].T)
        result[name] = jax.tree.map(jnp.asarray, builder.weight())
    return result


def dequantised(params):
    is_int8 = lambda weight: isinstance(weight, Int8Weight | Int8Table)
    return {
        name: jnp.asarray(plain(weight), jnp.float32) if is_int8(weight) else weight
        for name, weight in params.items()
    }


TINY = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    dtype="float32",
    remat="none",
    initializer_range=0.2,
)
CONFIGS = {
    "own head": TINY,
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True),
    "experts": dataclasses.replace(
        TINY, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, architecture="mixtral"
    ),
}


def test_every_number_is_within_half_a_step_of_its_row():
    rows = normal(40, 96) * np.logspace(-3, 2, 40, dtype=np.float32)[:, None]
    rows[7] = 0
    codes, scales = quantise_rows(rows)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(codes * scales - rows) <= step * 0.5001).all()
    assert codes.min() >= -127 and not codes[7].any() and scales[7] == 1


def test_rows_are_the_same_in_blocks_of_threads(monkeypatch):
    rows = normal(37, 16)
    whole = quantise_rows(rows)
    monkeypatch.setattr(int8, "HOST_BLOCK", 5 * 16)
    for part, expected in zip(quantise_rows(rows), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_stacked_weight_is_quantised_as_for_adapters():
    weight = normal(3, 20, 12)
    builder = Int8Builder("query", weight.shape)
    for layer in range(3):
        builder.add((layer,), weight[layer].T)
    own, expected = builder.weight(), quantise(jnp.asarray(weight), "int8")
    np.testing.assert_allclose(own.scales, expected.scales, rtol=1e-6)
    assert np.abs(own.codes.astype(int) - np.asarray(expected.codes)).max() <= 1
    assert np.mean(own.codes != np.asarray(expected.codes)) < 0.01


def test_a_weight_that_is_not_finite_stays_so():
    rows = normal(4, 8)
    rows[1, 3], rows[2, 5] = np.nan, np.inf
    codes, scales = quantise_rows(rows)
    assert np.isfinite(scales[:, 0]).tolist() == [True, False, False, True]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape, numbers", [((24, 10), 70), ((24, 10), 10**6), ((7, 33), 50)])
def test_the_product_in_blocks(rows, transposed, shape, numbers, monkeypatch):
    monkeypatch.setattr(int8, "BLOCK_NUMBERS", numbers)
    codes = np.random.default_rng(1).integers(-127, 128, shape, dtype=np.int8)
    x = normal(rows, shape[0])
    for widest in (10**6, 1):  # summed over blocks of inputs, and by blocks of outputs
        monkeypatch.setattr(int8, "WIDEST_ACCUMULATOR", widest)
        product = blocked_product(
            jnp.asarray(x), jnp.asarray(codes.T if transposed else codes), transposed=transposed
        )
        np.testing.assert_allclose(product, x.astype(np.float64) @ codes, rtol=1e-5, atol=1e-4)


def test_few_rows_on_one_cpu_are_multiplied_in_blocks():
    assert in_blocks(jnp.zeros((1, 16, 8))) and not in_blocks(jnp.zeros((65, 8)))
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8))):
        assert not in_blocks(jnp.zeros((1, 8)))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [3, 100])
def test_the_product_reads_codes_and_scales_its_result(rows, dtype, tolerance):
    weight = quantise(jnp.asarray(normal(40, 24)), "int8")
    x = jnp.asarray(normal(2, rows, 40, seed=1), dtype)
    out = linear(x, {"up": weight}, "up")
    expected = np.asarray(x, np.float64) @ plain(weight)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance * 20)


def test_the_table_serves_lookup_and_logits():
    builder = Int8Builder("embed", (50, 16))
    builder.add((), normal(50, 16))
    weights = {"embed": jax.tree.map(jnp.asarray, builder.weight())}
    tokens = jnp.asarray([[0, 49, 7]])
    rows = token_embeddings(tokens, weights, jnp.float32)
    np.testing.assert_allclose(rows, plain(weights["embed"])[np.asarray(tokens)], atol=1e-6)
    for hidden in (normal(3, 16), normal(2, 50, 16)):
        logits = vocabulary_logits(jnp.asarray(hidden), weights)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, hidden @ plain(weights["embed"]).T, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_computes_what_its_dequantised_weights_do(name):
    config = CONFIGS[name]
    params = quantised(init_params(config, jax.random.key(0)))
    assert {n for n, w in params.items() if isinstance(w, Int8Weight | Int8Table)} == {
        n for n in INT8_WEIGHTS if n in parameter_shapes(config)
    }
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 40)))
    marks = (jnp.broadcast_to(jnp.arange(40), (2, 40)), jnp.ones((2, 40), jnp.int32))

    def run(weights):
        model = Transformer(config, weights)
        hidden = model(tokens, *marks, mode=AttentionMode.CAUSAL).hidden
        return model.logits(hidden), token_losses(hidden, tokens, model.params())

    run = jax.jit(run)
    for own, expected in zip(run(params), run(dequantised(params)), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-3)


@pytest.mark.parametrize(
    "name, sizes", [("tied", MeshConfig(1, 4, 2)), ("experts", MeshConfig(1, 1, 8))]
)
def test_eight_devices_compute_as_one(name, sizes):
    """Eight devices along tensor are more than the experts: those are split along their width."""
    config = CONFIGS[name]
    params = quantised(init_params(config, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 61, (4, 16))
    rows = (tokens, np.broadcast_to(np.arange(16), (4, 16)), np.ones((4, 16), np.int32))

    @jax.jit
    def run(weights, tokens, positions, segments):
        model = Transformer(config, weights)
        out = model(tokens, positions, segments, mode=AttentionMode.BIDIRECTIONAL)
        return model.logits(out.hidden)

    expected = run(params, *rows)
    mesh = make_mesh(sizes)
    put = lambda part, axes: jax.device_put(part, fitted_sharding(axes, part.shape, mesh))
    placed = {
        name: jax.tree.map(put, weight, storage_axes(weight, PARAMETER_AXES[name]))
        for name, weight in params.items()
    }
    assert not placed["query"].codes.is_fully_replicated
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(run(placed, *put_rows(rows, mesh)), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["embed", "expert_up", "head"])
def test_abstract_weights_have_the_shapes_of_real_ones(name):
    shape = parameter_shapes(CONFIGS["experts"])[name]
    real = Int8Builder(name, shape).weight()
    abstract = abstract_int8(name, shape)
    assert type(abstract) is type(real) and abstract.shape == shape
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
