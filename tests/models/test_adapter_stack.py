"""Products with several adapters against the merged matrices, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.adapter_stack import AdapterStack, choose, stacked
from grit_jax.models.layers import linear
from grit_jax.models.lora import LoraConfig

L, D, F = 2, 6, 5
LORAS = [LoraConfig(rank=2, alpha=3.0), LoraConfig(rank=4, alpha=1.0)]


@pytest.fixture(scope="module")
def weights():
    """Two weights of two layers; the second adapter leaves one of them alone."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    base = {"query": draw(L, D, F), "key": draw(L, D, F), "final_norm": draw(D)}
    factors = [
        {
            f"{name}_lora_{kind}": draw(L, *((D, lora.rank) if kind == "a" else (lora.rank, F)))
            for name in names
            for kind in "ab"
        }
        for lora, names in zip(LORAS, (("query", "key"), ("query",)), strict=True)
    ]
    return base, factors, stacked(base, list(zip(factors, LORAS, strict=True)), "float32")


def merged(base, factors, name, layer, adapter):
    """`W + alpha / r * A B` in float64."""
    weight = base[name][layer].astype(np.float64)
    if not adapter or f"{name}_lora_a" not in factors[adapter - 1]:
        return weight
    own, lora = factors[adapter - 1], LORAS[adapter - 1]
    a, b = (own[f"{name}_lora_{kind}"][layer].astype(np.float64) for kind in "ab")
    return weight + lora.alpha / lora.rank * a @ b


@pytest.mark.parametrize("by", ["row", "token"])
def test_products(weights, by):
    base, factors, whole = weights
    x = np.random.default_rng(1).normal(size=(3, 4, D)).astype(np.float32)
    choice = np.array([1, 0, 2]) if by == "row" else np.arange(12).reshape(3, 4) % 3
    of_token = np.broadcast_to(choice[:, None], (3, 4)) if by == "row" else choice
    chosen = choose(whole, jnp.asarray(choice, jnp.int32))
    for name in ("query", "key"):
        for layer in range(L):
            own = {name: jax.tree.map(lambda part, layer=layer: part[layer], chosen[name])}
            got = np.asarray(linear(x, own, name))
            for place in np.ndindex(3, 4):
                weight = merged(base, factors, name, layer, of_token[place])
                np.testing.assert_allclose(got[place], x[place] @ weight, rtol=1e-4, atol=1e-5)


def test_no_adapter_is_exactly_the_base(weights):
    """Whatever the others hold, infinity included."""
    base, _, whole = weights
    x = np.random.default_rng(2).normal(size=(1, 4, D)).astype(np.float32)
    query = jax.tree.map(lambda part: part[0], whole["query"])
    query.a = np.full_like(query.a, np.inf)
    got = np.asarray(linear(x, {"query": query}, "query"))
    np.testing.assert_array_equal(got, np.asarray(linear(x, {"query": base["query"][0]}, "query")))


def test_what_has_no_adapters_is_passed_on(weights):
    base, _, whole = weights
    assert whole["final_norm"] is base["final_norm"]
    assert isinstance(whole["key"], AdapterStack) and whole["key"].ranks == (2, 0)
    assert whole["key"].shape == (L, D, F)
    assert choose(whole, None) == whole
