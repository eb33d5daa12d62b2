"""Attention of one decoded token per row, against a loop over rows and heads in float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.decode_attention import (
    DECODE_BLOCK,
    DecodeCache,
    OwnToken,
    decode_attention,
    decode_attention_layer,
)
from grit_jax.sharding import MeshConfig, make_mesh

L, B, N, K, H = 3, 4, 6, 2, 16
S = 2 * DECODE_BLOCK + 40  # the last block is not whole
LENGTHS = np.array([0, 1, DECODE_BLOCK, S], np.int32)


def make(slots=S, seed=0, int8=False, dtype=np.float32):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(dtype)
    q, own = draw(B, N, H), OwnToken(draw(B, K, H), draw(B, K, H))
    k, v = draw(L, B, K, H, slots), draw(L, B, K, slots, H)
    if not int8:
        return q, own, DecodeCache(k, v, LENGTHS)
    codes = lambda x: np.clip(np.round(x * 30), -127, 127).astype(np.int8)
    scales = lambda *shape: rng.uniform(0.02, 0.05, shape).astype(np.float32)
    return (
        q,
        own,
        DecodeCache(codes(k), codes(v), LENGTHS, scales(L, B, K, H), scales(L, B, K, slots)),
    )


def expected(q, own, cache, layer, softcap=None):
    """Row by row and head by head, in float64."""
    wide = lambda x: np.asarray(x, np.float64)
    k, v = wide(cache.k)[layer], wide(cache.v)[layer]
    if cache.k_scale is not None:
        k, v = k * wide(cache.k_scale)[layer][..., None], v * wide(cache.v_scale)[layer][..., None]
    out = np.zeros((B, N, H))
    for b in range(B):
        n = int(cache.lengths[b])
        for head in range(N):
            group = head // (N // K)
            keys, values = k[b, group, :, :n].T, v[b, group, :n]
            if own is not None:
                keys = np.concatenate([keys, wide(own.k)[b, group][None]])
                values = np.concatenate([values, wide(own.v)[b, group][None]])
            if not len(keys):
                continue
            s = keys @ wide(q)[b, head] / np.sqrt(H)
            s = s if softcap is None else softcap * np.tanh(s / softcap)
            p = np.exp(s - s.max())
            out[b, head] = p / p.sum() @ values
    return out


@functools.cache
def compiled(softcap=None):
    run = functools.partial(decode_attention_layer, scale=H**-0.5, softcap=softcap)
    return jax.jit(run)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("with_own", [True, False], ids=["own", "cache-only"])
def test_values(softcap, int8, with_own):
    q, own, cache = make(int8=int8)
    own = own if with_own else None
    for layer in (0, 2):
        out = compiled(softcap)(q, own, cache, layer)
        np.testing.assert_allclose(out, expected(q, own, cache, layer, softcap), atol=3e-6)


def test_one_layer_without_own_token():
    q, _, cache = make(int8=True)
    run = jax.jit(functools.partial(decode_attention, scale=H**-0.5, softcap=None))
    out = run(
        q,
        cache.k[1],
        cache.v[1],
        LENGTHS,
        k_scale=cache.k_scale[1],
        v_scale=cache.v_scale[1],
    )
    np.testing.assert_array_equal(out, compiled()(q, None, cache, 1))
    assert not np.asarray(out)[0].any()  # nothing to see


def test_bfloat16_keeps_its_dtype():
    q, own, cache = make(dtype=jnp.bfloat16)
    out = compiled()(q, own, cache, 1)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), expected(q, own, cache, 1), atol=0.03)


def test_a_row_alone_in_company_and_in_any_capacity():
    """The same bits beside other rows, after what earlier texts left behind, and whatever the
    capacity: a multiple of a block, none, and less than one."""
    q, own, cache = make()
    alone = DECODE_BLOCK - 30
    lengths = np.array([alone, alone, alone, alone], np.int32)
    wanted = compiled()(q, own, dataclasses.replace(cache, lengths=lengths), 1)
    for slots in (alone, DECODE_BLOCK, DECODE_BLOCK + 40, 4 * DECODE_BLOCK):
        rng = np.random.default_rng(slots)
        k, v = rng.normal(size=(L, B, K, H, slots)), rng.normal(size=(L, B, K, slots, H))
        k, v = 100 * k.astype(np.float32), 100 * v.astype(np.float32)
        k[..., :alone], v[..., :alone, :] = cache.k[..., :alone], cache.v[..., :alone, :]
        for row in range(B):
            lengths = np.full(B, slots, np.int32)
            lengths[row] = alone
            out = compiled()(q, own, DecodeCache(k, v, lengths), 1)
            np.testing.assert_array_equal(out[row], wanted[row])
    # Beyond the first block, where the last block is cut off by the capacity.
    full = compiled()(q, own, dataclasses.replace(cache, lengths=np.full(B, S, np.int32)), 1)
    pad = lambda x, axis: np.pad(x, [(0, 999 if i == axis else 0) for i in range(x.ndim)])
    larger = DecodeCache(pad(cache.k, 4), pad(cache.v, 3), np.full(B, S, np.int32))
    np.testing.assert_array_equal(compiled()(q, own, larger, 1), full)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_rows_of_any_lengths_side_by_side(int8):
    """Twelve rows in any order of lengths: each has the bits that it has alone."""
    q, own, cache = make(int8=int8)
    rows = np.arange(12) % B
    lengths = np.random.default_rng(0).permutation(np.linspace(0, S, 12).astype(np.int32))
    take = lambda x: None if x is None else x[:, rows]
    many = DecodeCache(
        take(cache.k), take(cache.v), lengths, take(cache.k_scale), take(cache.v_scale)
    )
    out = compiled()(q[rows], OwnToken(own.k[rows], own.v[rows]), many, 1)
    for row, source in enumerate(rows):
        one = lambda x: None if x is None else x[:, source : source + 1]
        alone = DecodeCache(
            one(cache.k),
            one(cache.v),
            lengths[row : row + 1],
            one(cache.k_scale),
            one(cache.v_scale),
        )
        mine = OwnToken(own.k[source : source + 1], own.v[source : source + 1])
        wanted = compiled()(q[source : source + 1], mine, alone, 1)
        np.testing.assert_array_equal(out[row], wanted[0])


def test_no_layer_is_copied():
    """In a scan over layers that closes over the stacks, no array of a layer's size is made, and
    the bytes behind the lengths are not read."""
    q, own, cache = make(slots=16 * DECODE_BLOCK)

    def model(q, own, cache):
        def body(x, layer):
            out = decode_attention_layer(x, own, cache, layer, scale=1.0, softcap=None)
            return x + out, None

        return jax.lax.scan(body, q, jnp.arange(L))[0]

    memory = jax.jit(model).lower(q, own, cache).compile().memory_analysis()
    layer = cache.k[0].nbytes
    assert memory.temp_size_in_bytes < layer / 4
    nan_behind = dataclasses.replace(cache, k=cache.k.copy(), lengths=np.full(B, 5, np.int32))
    nan_behind.k[..., DECODE_BLOCK:] = np.nan
    assert np.isfinite(jax.jit(model)(q, own, nan_behind)).all()


@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 8), MeshConfig(4, 1, 2)])
def test_rows_and_heads_split_over_devices(mesh):
    """Two rows a device, rows that do not divide, one row; the same bits as on one device."""
    q, own, cache = make(int8=True)
    wanted = compiled()(q, own, cache, 1)
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:8])):
        run = jax.jit(functools.partial(decode_attention_layer, scale=H**-0.5, softcap=None))
        np.testing.assert_array_equal(run(q, own, cache, 1), wanted)
