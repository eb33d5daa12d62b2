"""Splash attention: its tiles, and its results beside those of the blocked path, interpreted."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec
from tensor_error import assert_near

from grit_jax.models import attention, kernels
from grit_jax.models.attention import attend
from grit_jax.models.kernels import KeyValues
from grit_jax.models.splash import (
    KEY_SIDES,
    QUERY_SIDES,
    computed_tiles,
    key_block,
    query_block,
    splash_attention,
)
from grit_jax.plan.chips import open_slices
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.types import AttentionMode

BIDIRECTIONAL, CAUSAL, PREFIX = (
    AttentionMode.BIDIRECTIONAL,
    AttentionMode.CAUSAL,
    AttentionMode.PREFIX,
)


@pytest.mark.parametrize(
    "T, window", [(2048, None), (2048, 700), (768, 100), (1152, None), (640, 1)]
)
@pytest.mark.parametrize("cached, keys", [(0, None), (256, 128), (512, 256)])
def test_tiles_that_splash_computes(T, window, cached, keys):
    """As the kernel itself marks those that it does not pass over."""
    side, S = query_block(T, window), T + cached
    sides = (side, keys or side)
    if S % sides[1]:
        pytest.skip("keys are padded to whole tiles before")
    block_sizes = splash_attention_kernel.BlockSizes(
        **dict.fromkeys(QUERY_SIDES, sides[0]), **dict.fromkeys(KEY_SIDES, sides[1])
    )
    whole = (T // sides[0]) * (S // sides[1])
    for causal in (True, False):
        if window is None:
            mask = (
                splash_attention_mask.CausalMask((T, S), cached)
                if causal
                else splash_attention_mask.FullMask((T, S))
            )
        else:
            mask = splash_attention_mask.LocalMask(
                (T, S), (window - 1, 0 if causal else window - 1), cached
            )
        many = splash_attention_mask.MultiHeadMask([mask])
        marks = splash_attention_kernel.make_splash_mha(
            many, block_sizes=block_sizes, head_shards=1, q_seq_shards=1
        )
        marks = marks.fwd_mask_info.block_mask
        computed = whole if marks is None else np.count_nonzero(marks)
        assert computed_tiles(T, S, sides, causal=causal, window=window) == (computed, whole)


def test_tiles_divide_the_row_and_are_no_wider_than_its_window():
    assert [query_block(T, None) for T in (128, 256, 384, 512, 640, 768, 2048)] == [
        128,
        256,
        384,
        512,
        128,
        384,
        512,
    ]
    assert [query_block(2048, window) for window in (64, 128, 300, 512, 4096)] == [
        128,
        128,
        256,
        512,
        512,
    ]


def test_padding_of_keys_is_weighed_against_the_number_of_tiles():
    assert [key_block(S, 128) for S in (0, 100, 300, 512, 1920, 2048, 3968)] == [
        128,
        256,
        512,
        384,
        512,
        384,
        512,
    ]


def keys(rng, B, S, K, H, segments, by_head):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    k = draw(B, K, H, S) if by_head else draw(B, S, K, H)
    v = draw(B, K, S, H) if by_head else draw(B, S, K, H)
    positions = jnp.asarray(rng.integers(0, S, (B, S)), jnp.int32)
    return KeyValues(k, v, positions, jnp.asarray(segments, jnp.int32), by_head=by_head)


def rows(seed=0, B=2, T=100, slots=(70, 33), N=4, K=2, H=128):
    """Queries with their own keys in up to three segments and padding behind, and caches with empty
    slots, keys of several segments and, in the first, of a token that was not finite."""
    rng = np.random.default_rng(seed)
    packed = np.sort(rng.integers(0, 4, (B, T)))[:, ::-1]
    own = keys(rng, B, T, K, H, packed, False)
    own = dataclasses.replace(own, positions=jnp.tile(jnp.arange(T), (B, 1)))
    cached = [keys(rng, B, S, K, H, rng.integers(0, 4, (B, S)), True) for S in slots]
    cached[0].segments = cached[0].segments.at[:, 5].set(-3)
    q = jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32)
    return q, own, cached


def interpreted(monkeypatch):
    """The TPU's kernels on the CPU."""
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", make)
    # Whatever comes to the blocked path is an error.
    monkeypatch.setattr(kernels, "blocked_attention", None)


def value_and_gradients(q, own, cached, **options):
    """Attention with a NaN counted as a number, a loss over the tokens that are no padding, and its
    gradients."""
    real = (own.segments > 0)[:, :, None, None]

    def loss(q, own_kv, cached_kv):
        mine = dataclasses.replace(own, k=own_kv[0], v=own_kv[1])
        theirs = [dataclasses.replace(group, k=k, v=v) for group, (k, v) in zip(cached, cached_kv)]
        out = attend(q, mine, cached=theirs, **options)
        out = jnp.where(jnp.isfinite(out) & real, out, 7.0)
        return jnp.sin(out).sum(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = run(q, (own.k, own.v), [(group.k, group.v) for group in cached])
    return out, grads


@pytest.mark.parametrize(
    "mode, softcap, window",
    [
        (CAUSAL, None, None),
        (BIDIRECTIONAL, 5.0, None),
        (CAUSAL, None, 100 + 103),
        (CAUSAL, None, 40),
        (BIDIRECTIONAL, 5.0, 40),
        (PREFIX, None, None),
    ],
    ids=["causal", "bidirectional-capped", "wide-window", "window", "symmetric-window", "prefix"],
)
def test_over_cached_keys_as_the_blocked_path(monkeypatch, mode, softcap, window):
    """Forward and backward: two caches, lengths that are no multiple of a tile, padding and empty
    slots, the readers of a token that was not finite, and masks that slots do not express."""
    q, own, cached = rows()
    blocks = jnp.asarray(np.random.default_rng(3).integers(0, 3, own.segments.shape), jnp.int32)
    options = {"mode": mode, "softcap": softcap, "window": window, "blocks": blocks}
    expected = value_and_gradients(q, own, cached, **options)
    assert (np.asarray(expected[0]) == 7.0).any()
    interpreted(monkeypatch)
    assert_near(value_and_gradients(q, own, cached, **options), expected)


def test_over_an_int8_cache(monkeypatch):
    q, own, cached = rows(B=1, T=64, N=2, K=1)
    rng = np.random.default_rng(1)
    codes = lambda x: jnp.round(x * 30).astype(jnp.int8)
    scales = lambda *shape: jnp.asarray(rng.uniform(0.02, 0.05, shape), jnp.float32)
    B, K, H, S = cached[0].k.shape
    cached[0] = dataclasses.replace(
        cached[0],
        k=codes(cached[0].k),
        v=codes(cached[0].v),
        k_scale=scales(B, K, H),
        v_scale=scales(B, K, S),
    )
    run = lambda: jax.jit(lambda q: attend(q, own, mode=CAUSAL, cached=cached))(q)
    expected = run()
    interpreted(monkeypatch)
    out = run()
    real = np.asarray((own.segments > 0)[:, :, None, None] & np.isfinite(expected))
    assert_near(np.where(real, out, 0), np.where(real, expected, 0))


@pytest.mark.parametrize("mode", [CAUSAL, ((BIDIRECTIONAL, 1), (CAUSAL, 1))], ids=["one", "blocks"])
@pytest.mark.parametrize("context", [1, 4])
@pytest.mark.slow
def test_over_cached_keys_on_several_devices(monkeypatch, mode, context):
    """Rows, heads and tokens of rows split; gradients included."""
    q, own, cached = rows(B=4, T=512)
    expected = value_and_gradients(q, own, cached, mode=mode)
    interpreted(monkeypatch)
    mesh = MeshConfig(1, 2, 4 // context, context=context)
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:8])):
        assert_near(value_and_gradients(q, own, cached, mode=mode), expected)


def test_what_the_kernel_does_not_take(monkeypatch):
    """Narrow heads, few tokens over a cache or one, a window over cached keys where tokens are
    split over devices; without cache, rows that are no multiple of a tile."""
    options = {"window": None, "symmetric_window": False, "scale": 1.0, "softcap": None}
    q, own, cached = rows(B=1, T=256)

    def take(tokens, cached, H=128, **changes):
        part = lambda x: x[:, :tokens, ..., :H] if x.ndim == 4 else x[:, :tokens]
        mine, queries = jax.tree.map(part, own), part(q)
        queries = kernels.Queries(queries, mine.positions, mine.segments)
        return splash_attention(queries, mine, cached, **{**options, **changes})

    assert take(256, [], H=64) is None
    assert take(63, cached) is None
    assert take(100, []) is None
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1, context=2), jax.devices()[:2])):
        assert take(256, cached, window=256 + 102) is None
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(attention, "splash_attention", None)  # calling it is an error
    one = jax.tree.map(lambda x: x[:, :1], own)
    run = lambda q: attend(q, one, cached=cached, mode=CAUSAL)
    assert jax.eval_shape(run, q[:, :1]).shape == (1, 1, 4, 128)


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(
    "slices, shape, window",
    [
        ("v5e:2x2", (1, 4, 1), None),
        ("v5e:2x2", (1, 2, 2), 1500),
        ("v5p:2x2x1", (1, 2, 2), None),
        ("v6e:2x2", (2, 1, 1, 2), None),
    ],
)
def test_over_cached_keys_on_a_tpu(monkeypatch, slices, shape, window):
    """Forward and backward compiled, with rows, heads, or tokens of rows split, and under a mask
    that is read from memory: the scores of 1,024 tokens and 2,000 cached keys are never in memory,
    which the blocked path writes and reads."""
    B, T, S, N, K, H = 4, 1024, 2000, 8, 2, 128
    mesh = make_mesh(MeshConfig(*shape), open_slices(slices).devices)

    def array(dtype, *sizes, axes=(("data", "fsdp"), "context")):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    rows = ("data", "fsdp")
    token = functools.partial(array, jnp.bfloat16, axes=(rows, "context", "tensor"))
    by_head = functools.partial(array, jnp.bfloat16, axes=(rows, "tensor"))
    marks = [array(jnp.int32, B, T)] * 2 + [array(jnp.int32, B, S, axes=(rows,))] * 2

    def run(arrays, positions, segments, cached_positions, cached_segments):
        def loss(arrays):
            q, k, v, cached_k, cached_v = arrays
            own = KeyValues(k, v, positions, segments)
            cached = KeyValues(cached_k, cached_v, cached_positions, cached_segments, by_head=True)
            out = attend(q, own, mode=CAUSAL, window=window, cached=[cached])
            return out.astype(jnp.float32).sum()

        return jax.grad(loss)(arrays)

    arrays = (token(B, T, N, H), token(B, T, K, H), token(B, T, K, H))
    arrays += (by_head(B, K, H, S), by_head(B, K, S, H))

    def costs():
        with jax.set_mesh(mesh):
            compiled = jax.jit(lambda *a: run(*a)).lower(arrays, *marks).compile()
        return compiled.as_text(), program_costs(compiled.as_text())

    text, fused = costs()
    assert all(f"splash_mha_{kernel}" in text for kernel in ("fwd", "dq", "dkv"))
    # Two products forward and seven backward, over all keys but the own ones that come later.
    assert fused.flops >= 2 * 9 * B * N * T * (S + T // 2) * H / mesh.size
    assert fused.flops <= 2 * 9 * B * N * T * 3072 * H / mesh.size
    scores = 4 * B * N * T * (S + T) / mesh.size
    assert fused.memory_bytes < scores
    if shape == (1, 4, 1):  # the blocked path takes the compiler a minute
        monkeypatch.setattr(attention, "splash_attention", lambda *_, **__: None)
        text, blocked = costs()
        assert "splash_mha" not in text and blocked.memory_bytes > 2 * scores
