"""The TPU's kernel for decoded tokens, interpreted, beside the blocked path; and compiled for
slices that are not here."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from grit_jax.models import decode_attention, decode_kernel
from grit_jax.models.decode_attention import DecodeCache, OwnToken, decode_attention_layer
from grit_jax.models.decode_kernel import block_size, takes, work_list
from grit_jax.plan.chips import open_slices
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, make_mesh

L, B, N, K, H = 2, 5, 6, 2, 128
S = 1024  # two blocks


def make(int8=False):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, own = draw(B, N, H), OwnToken(draw(B, K, H), draw(B, K, H))
    lengths = jnp.array([0, 700, 1, 512, S], jnp.int32)
    cache = DecodeCache(draw(L, B, K, H, S), draw(L, B, K, S, H), lengths)
    if int8:
        codes = lambda x: jnp.round(x * 30).astype(jnp.int8)
        scales = lambda *shape: jnp.asarray(rng.uniform(0.02, 0.05, shape), jnp.float32)
        cache = dataclasses.replace(
            cache,
            k=codes(cache.k),
            v=codes(cache.v),
            k_scale=scales(L, B, K, H),
            v_scale=scales(L, B, K, S),
        )
    return q, own, cache


@pytest.mark.parametrize(
    "int8, with_own, softcap, parts",
    [(False, True, None, 1), (False, False, 3.0, 2), (True, True, 3.0, 2), (True, False, None, 1)],
)
def test_as_the_blocked_path(monkeypatch, int8, with_own, softcap, parts):
    q, own, cache = make(int8)
    own = own if with_own else None
    run = functools.partial(decode_attention_layer, scale=H**-0.5, softcap=softcap)
    expected = jax.jit(run)(q, own, cache, 1)
    monkeypatch.setattr(decode_attention, "platform", lambda: "tpu")
    monkeypatch.setattr(decode_attention, "_blocked", None)  # calling it is an error
    monkeypatch.setattr(decode_kernel, "_parts", lambda heads: parts)
    with pltpu.force_tpu_interpret_mode():
        out = run(q, own, cache, 1)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_the_list_of_blocks():
    """Each row's valid blocks in their order, one for an empty row, and no other."""
    row, number, count = work_list(jnp.array([0, 700, 1, 512, 5000]), 1024, 512)
    listed = list(zip(row.tolist(), number.tolist(), strict=True))[: int(count)]
    assert listed == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (4, 1)]
    assert len(row) == 10 and int(row.max()) == 4  # places that no step comes to are valid indices


def test_blocks_fit_the_vector_memory_and_caches_must_be_whole_blocks():
    assert [block_size(8, 128, 2), block_size(32, 128, 2), block_size(64, 256, 4)] == [
        512,
        128,
        128,
    ]
    assert block_size(1, 128, 1) == 512
    cache = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    assert takes(cache(2, 4, 8, 128, 1024)) and not takes(cache(2, 4, 8, 128, 768))
    assert not takes(cache(2, 4, 8, 64, 1024))  # the compiler would copy such values


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("slices, tensor", [("v5e:2x2", 4), ("v5p:2x2x1", 2), ("v6e:2x2", 1)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_a_layer_is_read_once_on_a_tpu(slices, tensor, dtype):
    """Compiled in a scan over layers: the bytes are those of the cache at full length, nothing is
    copied, and no chip asks another."""
    layers, B, K, G, S = 3, 16, 8, 4, 2048
    mesh = make_mesh(MeshConfig(1, -1, tensor), open_slices(slices).devices)

    def array(dtype, *shape, axes=(("data", "fsdp"), "tensor")):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    stacked = functools.partial(array, axes=(None, ("data", "fsdp"), "tensor"))
    scales = (stacked(jnp.float32, layers, B, K, H), stacked(jnp.float32, layers, B, K, S))
    cache = DecodeCache(
        stacked(dtype, layers, B, K, H, S),
        stacked(dtype, layers, B, K, S, H),
        array(jnp.int32, B, axes=(("data", "fsdp"),)),
        *(scales if dtype == jnp.int8 else ()),
    )
    narrow = functools.partial(array, jnp.bfloat16)
    own = OwnToken(narrow(B, K, H), narrow(B, K, H))

    def model(q, own, cache):
        def body(x, layer):
            return decode_attention_layer(x, own, cache, layer, scale=0.1, softcap=None), None

        return jax.lax.scan(body, q, jnp.arange(layers))[0]

    with jax.set_mesh(mesh):
        compiled = jax.jit(model).lower(narrow(B, K * G, H), own, cache).compile()
    text = compiled.as_text()
    size = sum(x.size * x.dtype.itemsize for x in (cache.k, cache.v)) / mesh.size
    costs = program_costs(text)
    assert "tpu_custom_call" in text and costs.sent_bytes == 0
    assert size < costs.memory_bytes < 1.05 * size
    assert costs.flops == 2 * 2 * layers * B * K * G * S * H / mesh.size
    assert compiled.memory_analysis().temp_size_in_bytes < size / layers / 2
