"""The attention function against a loop over queries and keys, in every combination of its
options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from grit_jax.models import kernels
from grit_jax.models.attention import attend
from grit_jax.models.cache import mark_nonfinite
from grit_jax.models.kernels import KeyValues
from grit_jax.types import KV, AttentionMode

BIDIRECTIONAL, CAUSAL, PREFIX = (
    AttentionMode.BIDIRECTIONAL,
    AttentionMode.CAUSAL,
    AttentionMode.PREFIX,
)
B, T, S, N, K, H = 2, 11, 9, 4, 2, 8


# Blocks of the tokens of `make`: whole texts, parts of them, a number twice in a text and in two
# texts, none.
BLOCKS = np.array([[1, 1, 1, 0, 0, 0, 2, 2, 0, 1, 1], [0, 0, 3, 3, 3, 1, 1, 0, 3, 3, 0]])


def sees(mode, window, t, s, query, key, cached):
    """Whether token `t` sees key `s`; `query` and `key` are their (position, segment, block)."""
    if key[1] == 0 or key[1] != query[1]:
        return False
    together = mode is BIDIRECTIONAL or mode is PREFIX and query[2] == key[2] != 0
    if not together and not cached and s > t:
        return False
    distance = query[0] - key[0]
    return window is None or (distance < window if mode is CAUSAL else abs(distance) < window)


def dense_mask(mode, window, own, cached):
    """The mask over own and cached keys, `[B, T, T + S]`, one entry at a time."""
    marks = lambda keys, b: list(
        zip(np.asarray(keys.positions)[b], np.asarray(keys.segments)[b], BLOCKS[b], strict=False)
    )
    rows = []
    for b in range(own.k.shape[0]):
        queries, later = marks(own, b), [] if cached is None else marks(cached, b)
        rows.append(
            [
                [sees(mode, window, t, s, query, key, False) for s, key in enumerate(queries)]
                + [sees(mode, window, t, s, query, key, True) for s, key in enumerate(later)]
                for t, query in enumerate(queries)
            ]
        )
    return np.array(rows)


@jax.jit
def naive(q, own, cached, mask):
    """Softmax attention over the whole matrix; queries that see nothing give 0."""
    k, v = own.k, own.v
    if cached is not None:
        k, v = jnp.concatenate([k, cached.k], 1), jnp.concatenate([v, cached.v], 1)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    p = jnp.where(mask[:, None], jnp.exp(scores), 0)
    return jnp.einsum("bnts,bsnh->btnh", p / jnp.maximum(p.sum(-1, keepdims=True), 1e-30), v)


def slots(keys):
    """Keys as a cache holds them."""
    return (
        ()
        if keys is None
        else (
            KeyValues(
                keys.k.transpose(0, 2, 3, 1),
                keys.v.transpose(0, 2, 1, 3),
                keys.positions,
                keys.segments,
                by_head=True,
            ),
        )
    )


def compiled(mode, window=None):
    """Attention of (queries, own keys, cached keys), compiled anew, since `KEY_BLOCK` may have
    changed."""
    run = lambda q, own, cached: attend(
        q, own, mode=mode, window=window, cached=slots(cached), blocks=jnp.asarray(BLOCKS)
    )
    return lambda *arguments, run=jax.jit(run): np.asarray(run(*arguments))


def attend_now(q, own, cached, mode, window=None):
    return compiled(mode, window)(q, own, cached)


def make(seed=0, kv_heads=K):
    """Queries, own keys in three segments with padding, and a cache with holes and foreign
    segments."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    segments = np.zeros((B, T), int)
    positions = np.zeros((B, T), int)
    for b, cuts in enumerate([(0, 5, 9), (2, 11)]):
        for i, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
            segments[b, start:stop] = i + 1
            positions[b, start:stop] = np.arange(stop - start) + 3 * b
    own = KeyValues(
        normal(B, T, kv_heads, H),
        normal(B, T, kv_heads, H),
        *map(jnp.asarray, (positions, segments)),
    )
    marks = rng.integers(0, 4, (B, S)), rng.integers(0, 4, (B, S))
    cached = KeyValues(
        normal(B, S, kv_heads, H), normal(B, S, kv_heads, H), *map(jnp.asarray, marks)
    )
    return normal(B, T, N, H), own, cached


@pytest.mark.parametrize("mode", [BIDIRECTIONAL, CAUSAL, PREFIX], ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "block, window, with_cache",
    [(512, None, False), (512, 3, True), (4, 3, False), (4, None, True)],
    ids=["whole", "whole-window-cached", "blocked-window", "blocked-cached"],
)
def test_values_and_gradients(monkeypatch, mode, block, window, with_cache):
    """`block` 4: both parts are longer than two blocks and their last block is padded."""
    monkeypatch.setattr(kernels, "KEY_BLOCK", block)
    q, own, cached = make()
    cached = cached if with_cache else None
    mask = dense_mask(mode, window, own, cached)
    seeing = mask.any(-1)[
        :, :, None, None
    ]  # what the others get is nobody's business, as long as it is finite
    weight = np.random.default_rng(1).normal(size=q.shape)

    def scalar(function):
        def loss(arrays):
            q, own_kv, cached_kv = arrays
            swap = lambda keys, kv: keys and dataclasses.replace(keys, k=kv[0], v=kv[1])
            out = function(q, swap(own, own_kv), swap(cached, cached_kv))
            return jnp.sum(jnp.where(seeing, out * weight, 0)), out

        return jax.value_and_grad(loss, has_aux=True)

    arrays = (q, (own.k, own.v), cached and (cached.k, cached.v))
    (_, expected), expected_grads = scalar(lambda *a: naive(*a, mask))(arrays)
    blocks = jnp.asarray(BLOCKS)
    (_, out), grads = jax.jit(
        scalar(
            lambda q, own, c: attend(
                q, own, mode=mode, window=window, cached=slots(c), blocks=blocks
            )
        )
    )(arrays)
    assert np.isfinite(out).all() and out.dtype == jnp.float32
    np.testing.assert_allclose(np.where(seeing, out, 0), np.where(seeing, expected, 0), atol=2e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_prefix_mode_between_the_two_others():
    """One block over everything is bidirectional, none is causal; without blocks there is nothing
    to go by."""
    q, own, cached = make()
    seeing = np.asarray(own.segments) > 0
    run = lambda mode, blocks: np.asarray(
        attend(q, own, mode=mode, window=3, cached=slots(cached), blocks=blocks)
    )[seeing]
    zeros = jnp.zeros((B, T), jnp.int32)
    np.testing.assert_allclose(run(PREFIX, zeros + 1), run(BIDIRECTIONAL, None), atol=2e-6)
    own.positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    cached.positions = jnp.zeros_like(cached.positions)  # a causal query stands behind its cache
    np.testing.assert_allclose(run(PREFIX, zeros), run(CAUSAL, zeros + 1), atol=2e-6)
    with pytest.raises(ValueError, match="blocks"):
        run(PREFIX, None)


def test_one_decoded_token_reads_the_cache():
    """A single query: the path that generation takes for every token."""
    q, own, cached = make()
    own = KeyValues(own.k[:, :1], own.v[:, :1], jnp.full((B, 1), 4), jnp.array([[1], [2]]))
    out = attend_now(q[:, :1], own, cached, CAUSAL, 2)
    np.testing.assert_allclose(
        out, naive(q[:, :1], own, cached, dense_mask(CAUSAL, 2, own, cached)), atol=2e-6
    )


@pytest.mark.parametrize(
    "length, block", [(1, 512), (T, 512), (T, 4)], ids=["decoded", "whole", "blocked"]
)
def test_an_int8_cache_is_read_as_what_its_codes_are_worth(monkeypatch, length, block):
    monkeypatch.setattr(kernels, "KEY_BLOCK", block)
    q, own, cached = make()
    q, own = (
        q[:, :length],
        KeyValues(*(a[:, :length] for a in (own.k, own.v, own.positions, own.segments))),
    )
    rng = np.random.default_rng(5)
    codes = lambda *shape: jnp.asarray(rng.integers(-127, 128, shape), jnp.int8)
    scale = lambda *shape: jnp.asarray(rng.uniform(0.002, 0.02, shape), jnp.float32)
    packed = KeyValues(
        codes(B, K, H, S),
        codes(B, K, S, H),
        cached.positions,
        cached.segments,
        by_head=True,
        k_scale=scale(B, K, H),
        v_scale=scale(B, K, S),
    )
    worth = dataclasses.replace(
        packed,
        k=packed.k * packed.k_scale[..., None],
        v=packed.v * packed.v_scale[..., None],
        k_scale=None,
        v_scale=None,
    )
    run = lambda slots: np.asarray(attend(q, own, mode=BIDIRECTIONAL, cached=(slots,)))
    np.testing.assert_allclose(run(packed), run(worth), atol=2e-6)


def test_blocks_of_rows_in_different_modes():
    q, own, cached = make()
    seeing = np.asarray(own.segments) > 0
    for blocks in (((CAUSAL, 1), (BIDIRECTIONAL, 1)), ((CAUSAL, 1), (PREFIX, 1))):
        check_blocks(q, own, cached, seeing, blocks)


def check_blocks(q, own, cached, seeing, blocks):
    mixed = attend_now(q, own, cached, blocks, 3)
    for row, (mode, _) in enumerate(blocks):
        expected = naive(q, own, cached, dense_mask(mode, 3, own, cached))
        np.testing.assert_allclose(mixed[row][seeing[row]], expected[row][seeing[row]], atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_any_grouping_of_heads(kv_heads):
    q, own, _ = make(kv_heads=kv_heads)
    mask = dense_mask(CAUSAL, None, own, None)
    out = np.where(mask.any(-1)[:, :, None, None], attend_now(q, own, None, CAUSAL), 0)
    np.testing.assert_allclose(out, naive(q, own, None, mask), atol=2e-6)


def test_empty_cache_changes_nothing():
    q, own, cached = make()
    empty = dataclasses.replace(cached, segments=jnp.zeros_like(cached.segments))
    seeing = np.asarray(own.segments) > 0
    with_cache, without = (attend_now(q, own, c, CAUSAL) for c in (empty, None))
    np.testing.assert_allclose(with_cache[seeing], without[seeing], atol=1e-6)


def test_bfloat16_keeps_its_dtype():
    q, own, cached = make()
    narrow = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree
    )
    seeing = np.asarray(own.segments) > 0
    out = attend_now(narrow(q), narrow(own), narrow(cached), BIDIRECTIONAL)
    assert out.dtype == jnp.bfloat16
    wide = attend_now(q, own, cached, BIDIRECTIONAL)
    np.testing.assert_allclose(out.astype(np.float32)[seeing], wide[seeing], atol=0.06)


# What a number is in the keys and values of one token: not finite in one of them or in both.
BAD = [("k", np.nan), ("v", np.nan), ("v", np.inf), ("kv", -np.inf)]
TOKEN = (0, 6)  # in segment 2 of row 0, with segment 1 before it and segment 3 behind


@pytest.mark.parametrize("mode", [BIDIRECTIONAL, CAUSAL, PREFIX, ((CAUSAL, 1), (BIDIRECTIONAL, 1))])
@pytest.mark.parametrize(
    "block, window, with_cache",
    [(512, None, False), (512, 3, True), (4, None, True), (4, 3, False)],
    ids=["whole", "whole-window-cached", "blocked-cached", "blocked-window"],
)
def test_a_text_that_is_not_finite_leaves_its_neighbours_alone(
    monkeypatch, mode, block, window, with_cache
):
    monkeypatch.setattr(kernels, "KEY_BLOCK", block)
    q, own, cached = make()
    cached = cached if with_cache else None
    marks = np.asarray(own.segments)
    text = np.zeros_like(marks, bool)
    text[0] = marks[0] == marks[TOKEN]
    neighbours = (marks > 0) & ~text
    run = compiled(mode, window)
    expected = run(q, own, cached)
    assert np.isfinite(expected).all()
    for names, number in BAD:
        change = {name: getattr(own, name).at[TOKEN].set(number) for name in names}
        out = run(q, dataclasses.replace(own, **change), cached)
        np.testing.assert_array_equal(out[neighbours], expected[neighbours])
        assert np.isnan(out[text]).all()


@pytest.mark.parametrize("length", [1, T], ids=["decoded", "text"])
@pytest.mark.parametrize("block", [512, 4])
def test_a_cached_token_that_is_not_finite_reaches_its_own_readers_alone(
    monkeypatch, length, block
):
    """A row's cache holds documents of several texts; slot 3 is one of them, slot 5 is empty."""
    monkeypatch.setattr(kernels, "KEY_BLOCK", block)
    q, own, cached = make()
    first = lambda x: x[:, :length]
    q, own = first(q), jax.tree.map(first, own)
    cached.segments = cached.segments.at[:, 3].set(jnp.array([1, 2])).at[:, 5].set(0)
    readers = np.asarray(own.segments) == np.array([[1], [2]])
    others = (np.asarray(own.segments) > 0) & ~readers
    read = compiled(BIDIRECTIONAL)

    def run(k, v):
        by_head = KV(k.transpose(0, 2, 3, 1)[None], v.swapaxes(1, 2)[None])
        kv, marked = mark_nonfinite(by_head, cached.segments)
        tokens_first = kv.k[0].transpose(0, 3, 1, 2), kv.v[0].swapaxes(1, 2)
        keys = KeyValues(*tokens_first, cached.positions, marked)
        return read(q, own, keys)

    expected = run(cached.k, cached.v)
    assert np.isfinite(expected).all() and readers.any()
    out = run(cached.k, cached.v.at[:, 3, 1, 2].set(np.nan).at[:, 5].set(np.nan))
    np.testing.assert_array_equal(out[others], expected[others])
    assert np.isnan(out[readers]).all()


def test_the_gradient_beside_a_text_that_is_not_finite():
    """What flows back into the neighbours is what flows without it."""
    q, own, cached = make()
    others = np.isin(np.asarray(own.segments), (1, 3))

    def gradient(v):
        def loss(q, k, v):
            keys = dataclasses.replace(own, k=k, v=v)
            out = attend(q, keys, mode=CAUSAL, cached=slots(cached))
            return jnp.sum(jnp.where(others[:, :, None, None], out, 0) ** 2)

        return jax.jit(jax.grad(loss, (0, 1, 2)))(q, own.k, v)

    segment = (np.asarray(own.segments) == 2)[:, :, None, None]
    broken = jnp.where(segment, jnp.nan, own.v)
    for ours, expected in zip(gradient(broken), gradient(own.v), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[others], np.asarray(expected)[others])


def test_splash_attention_beside_a_text_that_is_not_finite(monkeypatch):
    """The kernel itself, interpreted."""
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 128, 1, 128)), jnp.float32) for _ in range(3))
    marks = jnp.asarray(np.repeat([1, 2, 0], [60, 50, 18])[None], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(128), (1, 128))

    def run(v):
        with pltpu.force_tpu_interpret_mode():
            return np.asarray(attend(q, KeyValues(k, v, positions, marks), mode=BIDIRECTIONAL))[0]

    expected, out = run(v), run(v.at[0, 70].set(np.nan))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(out[:60], expected[:60])
    assert np.isnan(out[60:110]).all()


def test_long_inputs_never_build_the_whole_matrix(monkeypatch):
    """Temporary memory of the forward and backward pass, as the compiler plans it."""
    monkeypatch.setattr(kernels, "KEY_BLOCK", 64)
    length, many = 64, 8192
    shape = lambda tokens: (jax.ShapeDtypeStruct((1, tokens, 1, H), jnp.float32),) * 2
    marks = lambda tokens: (jax.ShapeDtypeStruct((1, tokens), jnp.int32),) * 2
    own, cached = (KeyValues(*shape(n), *marks(n)) for n in (length, many))

    @jax.jit
    @jax.grad
    def run(q, own, cached):
        return jnp.sum(attend(q, own, mode=CAUSAL, cached=slots(cached)) ** 2)

    memory = run.lower(shape(length)[0], own, cached).compile().memory_analysis()
    assert memory.temp_size_in_bytes < length * many * 4
