"""Slots with a length each: attention against a softmax in float64 over exactly the keys that a
token sees, and writes against assignments in NumPy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tiny_models import config_for

from grit_jax.models import slot_cache
from grit_jax.models.kernels import KeyValues
from grit_jax.models.slot_cache import (
    KEY_BLOCK,
    SlotCache,
    SlotRows,
    Span,
    append,
    constrained,
    empty_slots,
    mark_span,
    pick,
    put,
    slot_attention,
    write_span,
)
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.types import AttentionMode

L, B, K, G, H = 2, 4, 2, 2, 8
N = K * G
CAUSAL, BIDIRECTIONAL = AttentionMode.CAUSAL, AttentionMode.BIDIRECTIONAL


def make_cache(rng, lengths, S=2 * KEY_BLOCK, int8=False, layers=L):
    """Slots that are full of numbers, also beyond their lengths."""
    slots = len(lengths)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    k, v, scales = draw(layers, slots, K, H, S), draw(layers, slots, K, S, H), (None, None)
    if int8:
        k, v = (np.clip(np.round(x * 30), -127, 127).astype(np.int8) for x in (k, v))
        scale = lambda *shape: rng.uniform(0.02, 0.05, shape).astype(np.float32)
        scales = scale(layers, slots, K, H), scale(layers, slots, K, S)
    # Not in the order of the tokens: what a window leaves out is a matter of position alone.
    positions = rng.integers(0, 40, (slots, S)).astype(np.int32)
    return SlotCache(k, v, positions, np.asarray(lengths, np.int32), np.ones(slots, bool), *scales)


def make_tokens(rng, rows, T, padding=True):
    """Queries, and keys and values of the same tokens; some rows end in padding."""
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    segments = np.ones((rows, T), np.int32)
    if padding and T > 1:
        for row in range(rows):
            segments[row, T - row % T :] = 0
    positions = (20 + np.arange(T) + 3 * np.arange(rows)[:, None]).astype(np.int32)
    return draw(rows, T, N, H), KeyValues(
        draw(rows, T, K, H), draw(rows, T, K, H), positions, segments
    )


def dense(q, own, caches, lengths, slots, layer, mode, window=None, scale=None, softcap=None):
    """Token by token and head by head; NaN for padding."""
    wide = lambda x: np.asarray(x, np.float64)
    rows, T = q.shape[:2]
    out = np.full((rows, T, N, H), np.nan)
    for row in range(rows):
        # Of the row: keys [K n H], values, positions, and the place in the row (-1: cached).
        keys, values = [wide(own.k)[row].swapaxes(0, 1)], [wide(own.v)[row].swapaxes(0, 1)]
        positions, places = [own.positions[row]], [np.arange(T)]
        for cache, n in zip(caches, lengths):
            slot, n = slots[row], n[row]
            k, v = wide(cache.k[layer, slot, :, :, :n]), wide(cache.v[layer, slot, :, :n])
            if cache.k_scale is not None:
                k = k * cache.k_scale[layer, slot, :, :, None]
                v = v * cache.v_scale[layer, slot, :, :n, None]
            keys, values = [*keys, k.swapaxes(1, 2)], [*values, v]
            positions, places = [*positions, cache.positions[slot, :n]], [*places, np.full(n, -1)]
        keys, values = np.concatenate(keys, 1), np.concatenate(values, 1)
        positions, places = np.concatenate(positions), np.concatenate(places)
        for t in np.flatnonzero(own.segments[row]):
            real = (places < 0) | own.segments[row][places].astype(bool)
            seen = real & ((mode is BIDIRECTIONAL) | (places <= t))
            distance = own.positions[row, t] - positions
            if window is not None:
                seen &= (distance if mode is CAUSAL else np.abs(distance)) < window
            for head in range(N):
                scores = keys[head // G, seen] @ wide(q[row, t, head]) * (scale or H**-0.5)
                if softcap is not None:
                    scores = softcap * np.tanh(scores / softcap)
                p = np.exp(scores - scores.max())
                out[row, t, head] = p / p.sum() @ values[head // G, seen]
    return out


@functools.cache
def compiled(**options):
    @jax.jit
    def run(q, own, caches, lengths, local, layer):
        return slot_attention(q, own, SlotRows(caches, lengths, local), layer, **options)

    return run


def attention(q, own, caches, lengths, local=None, layer=1, **options):
    lengths = [np.asarray(n, np.int32) for n in lengths]
    local = None if local is None else np.asarray(local, np.int32)
    return np.asarray(compiled(**options)(q, own, caches, lengths, local, layer))


LENGTHS = [0, 1, KEY_BLOCK + 30, KEY_BLOCK]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "T, kinds, local, options",
    [
        (1, ["float"], None, {}),
        (1, ["float"], None, {"softcap": 2.0, "scale": 0.5}),
        (1, ["int8"], None, {}),
        (1, ["float"], None, {"window": 12}),
        (1, ["int8", "float"], None, {}),
        (5, ["float"], None, {}),
        (5, ["float"], None, {"mode": BIDIRECTIONAL, "window": 6}),
        (5, ["int8", "float"], [2], {"window": 6, "softcap": 2.0}),
        (5, ["int8", "float"], [1, 0], {"mode": BIDIRECTIONAL, "scale": 0.5}),
        (5, ["float"], [0, 1], {}),
    ],
    ids=str,
)  # fmt: skip
def test_values(T, kinds, local, options, layer):
    rng = np.random.default_rng(T + len(kinds))
    caches = [make_cache(rng, LENGTHS, int8=kind == "int8") for kind in kinds]
    rows = B if local is None else len(local)
    slots = range(B) if local is None else [i * (B // rows) + n for i, n in enumerate(local)]
    lengths = [np.array(LENGTHS)[list(slots)], np.array([7, 0, 300, 60])[:rows]][: len(kinds)]
    q, own = make_tokens(rng, rows, T)
    options = {"mode": CAUSAL, **options}
    out = attention(q, own, caches, lengths, local, layer, **options)
    wanted = dense(q, own, caches, lengths, slots, layer, **options)
    assert np.isfinite(out).all()
    real = own.segments > 0
    np.testing.assert_allclose(out[real], wanted[real], atol=3e-6)


@pytest.mark.parametrize("int8, local", [(False, None), (True, [1, 0])], ids=["all", "int8-shares"])
def test_the_kernel_of_a_tpu_over_slots(monkeypatch, int8, local):
    """Interpreted, for a pass over prompts with heads as wide as it takes, beside the loop."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    slots, rows, T, S, H = 4, 4 if local is None else 2, 64, KEY_BLOCK, 128
    k, v, scales = draw(L, slots, K, H, S), draw(L, slots, K, S, H), ()
    if int8:
        k, v = (np.round(x * 30).astype(np.int8) for x in (k, v))
        scales = (
            np.full((L, slots, K, H), 0.03, np.float32),
            np.full((L, slots, K, S), 0.04, np.float32),
        )
    positions = np.tile(np.arange(S, dtype=np.int32), (slots, 1))
    lengths = np.array([0, 1, 100, S][:rows], np.int32)
    cache = SlotCache(k, v, positions, lengths, np.ones(slots, bool), *scales)
    q, own = draw(rows, T, N, H), KeyValues(draw(rows, T, K, H), draw(rows, T, K, H), None, None)
    segments = np.ones((rows, T), np.int32)
    segments[1, 50:] = 0
    own.positions, own.segments = lengths[:, None] + np.arange(T, dtype=np.int32), segments
    local = None if local is None else np.array(local, np.int32)
    run = lambda: jax.jit(
        lambda q: slot_attention(q, own, SlotRows([cache], [lengths], local), 1, mode=CAUSAL)
    )(q)
    wanted, calls = run(), []

    def traced(out):
        calls.append(out is not None)
        return out

    monkeypatch.setattr(slot_cache, "platform", lambda: "tpu")
    splash = slot_cache.splash_attention
    monkeypatch.setattr(slot_cache, "splash_attention", lambda *a, **o: traced(splash(*a, **o)))
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", make)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(run())[real], np.asarray(wanted)[real], atol=3e-6)
    assert calls == [True]


def test_a_window_that_hides_nothing_costs_nothing(monkeypatch):
    """The kernel for decoded tokens takes no window; one wider than a slot is none."""
    rng = np.random.default_rng(0)
    cache = make_cache(rng, LENGTHS)
    q, own = make_tokens(rng, B, 1)
    wanted = attention(q, own, [cache], [LENGTHS], mode=CAUSAL)
    calls = []
    decode = slot_cache.decode_attention_layer
    monkeypatch.setattr(
        slot_cache, "decode_attention_layer", lambda *a, **o: calls.append(1) or decode(*a, **o)
    )
    out = attention(q, own, [cache], [LENGTHS], mode=CAUSAL, window=cache.capacity + 1)
    np.testing.assert_array_equal(out, wanted)
    assert calls
    attention(q, own, [cache], [LENGTHS], mode=CAUSAL, window=cache.capacity)
    assert len(calls) == 1


def test_a_token_that_sees_nothing_but_itself():
    """Of an empty slot, and of a window that leaves out all that is cached."""
    rng = np.random.default_rng(0)
    cache = make_cache(rng, LENGTHS)
    q, own = make_tokens(rng, B, 1)
    value = np.repeat(own.v[:, 0], G, axis=1)
    out = attention(q, own, [cache], [np.zeros(B)], mode=CAUSAL)
    np.testing.assert_allclose(out[:, 0], value, atol=1e-6)
    far = dataclasses.replace(own, positions=own.positions + 100)
    out = attention(q, far, [cache], [LENGTHS], mode=CAUSAL, window=12)
    np.testing.assert_allclose(out[:, 0], value, atol=1e-6)


@pytest.mark.parametrize(
    "T, options", [(1, {}), (1, {"window": 12}), (5, {}), (5, {"mode": BIDIRECTIONAL})], ids=str
)
def test_a_row_alone_in_company_in_any_capacity_and_after_anything(T, options):
    """The same bits, whatever the lengths of the others, the capacity and what earlier requests
    left behind in the slots."""
    options = {"mode": CAUSAL, **options}
    rng = np.random.default_rng(1)
    cache = make_cache(rng, LENGTHS)
    q, own = make_tokens(rng, B, T)
    for length in (0, 3, KEY_BLOCK - 1, KEY_BLOCK + 5):
        same = np.full(B, length, np.int32)
        wanted = attention(q, own, [cache], [same], **options)
        for S, left_behind in [(2 * KEY_BLOCK, 1e30), (4 * KEY_BLOCK, 100)]:
            other = make_cache(rng, LENGTHS, S)
            k, v = left_behind * other.k, left_behind * other.v
            k[..., :length], v[..., :length, :] = cache.k[..., :length], cache.v[..., :length, :]
            other.positions[:, :length] = cache.positions[:, :length]
            other = dataclasses.replace(other, k=k, v=v)
            for row in range(B):
                lengths = np.full(B, 0 if row % 2 else S)
                lengths[row] = length
                # What the others read is out of all proportion; their rows are not looked at.
                out = attention(q, own, [other], [lengths], **options)
                np.testing.assert_array_equal(out[row], wanted[row])


def test_a_prompt_in_one_slot_is_that_of_all_slots():
    """Row by row through `local` (P=1), two shares at a time (P=2), and all slots at once."""
    rng = np.random.default_rng(2)
    cache = make_cache(rng, LENGTHS)
    q, own = make_tokens(rng, B, 5)
    whole = attention(q, own, [cache], [LENGTHS], mode=CAUSAL)
    take = lambda rows: (
        q[rows],
        jax.tree.map(lambda x: x[rows], own),
        [cache],
        [np.array(LENGTHS)[rows]],
    )
    for slot in range(B):
        alone = attention(*take([slot]), [slot], mode=CAUSAL)
        np.testing.assert_allclose(alone[0], whole[slot], atol=1e-6)
    for local in ([0, 0], [1, 0], [0, 1], [1, 1]):
        slots = [local[0], 2 + local[1]]
        np.testing.assert_allclose(
            attention(*take(slots), local, mode=CAUSAL), whole[slots], atol=1e-6
        )


def test_bfloat16_keeps_its_dtype():
    rng = np.random.default_rng(3)
    cache = make_cache(rng, LENGTHS)
    q, own = make_tokens(rng, B, 5, padding=False)
    narrow = lambda x: x.astype(jnp.bfloat16)
    small = dataclasses.replace(cache, k=narrow(cache.k), v=narrow(cache.v))
    close = dataclasses.replace(own, k=narrow(own.k), v=narrow(own.v))
    out = attention(narrow(q), close, [small], [LENGTHS], mode=CAUSAL)
    assert out.dtype == jnp.bfloat16
    wanted = dense(q, own, [cache], [LENGTHS], range(B), 1, CAUSAL)
    np.testing.assert_allclose(out.astype(np.float32), wanted, atol=0.05)


# Slots with their sizes.


def test_empty_slots(tiny_tokenizer):
    config = config_for(tiny_tokenizer, hidden_size=16, intermediate_size=16, num_hidden_layers=3)
    cache = empty_slots(config, 4, KEY_BLOCK + 1)
    assert (cache.slots, cache.capacity) == (4, 2 * KEY_BLOCK)
    assert cache.k.shape == (3, 4, 2, 16, 2 * KEY_BLOCK) and cache.k.dtype == np.float32
    assert cache.v.shape == (3, 4, 2, 2 * KEY_BLOCK, 16) and cache.k_scale is None
    assert cache.lengths.tolist() == [0] * 4 and np.asarray(cache.finite).all()
    assert empty_slots(config, 1, KEY_BLOCK).capacity == KEY_BLOCK
    codes = empty_slots(config, 4, 10, jnp.int8)
    assert codes.k.dtype == codes.v.dtype == np.int8
    assert codes.k_scale.shape == (3, 4, 2, 16) and codes.v_scale.shape == (3, 4, 2, KEY_BLOCK)


# One slot of each share.


@pytest.mark.parametrize("local", [[3], [1, 0], [0, 1], [0, 0, 0, 0]], ids=str)
def test_pick_and_put(local):
    rng, P = np.random.default_rng(0), len(local)
    slots = [i * (B // P) + n for i, n in enumerate(local)]
    local = np.array(local, np.int32)
    for axis, shape in [(0, (B,)), (1, (2, B, 3))]:
        x = rng.normal(size=shape)
        np.testing.assert_array_equal(
            pick(jnp.asarray(x), local, axis), np.take(x, slots, axis).astype(np.float32)
        )
    x, values = rng.integers(0, 9, B), rng.integers(10, 19, P)
    for here in (True, np.arange(P) % 2 == 0, np.zeros(P, bool)):
        wanted = x.copy()
        for i in np.flatnonzero(np.broadcast_to(here, P)):
            wanted[slots[i]] = values[i]
        np.testing.assert_array_equal(put(jnp.asarray(x), local, jnp.asarray(values), here), wanted)


def test_put_keeps_the_dtype():
    marks = put(jnp.ones(4, bool), np.array([1, 0], np.int32), jnp.zeros(2, bool))
    assert marks.dtype == bool and marks.tolist() == [True, False, False, True]


# Writing a span.

T = 8
write = jax.jit(write_span)


def make_span(local, start, count):
    return Span(*(np.array(x, np.int32) for x in (local, start, count)))


def make_part(rng, P, layers=1):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return draw(layers, P, K, H, T), draw(layers, P, K, T, H)


def written(cache, k, v, span, first_layer):
    """What the slots hold afterwards, by assignment."""
    all_k, all_v = np.array(cache.k), np.array(cache.v)
    P = len(span.local)
    for layer in range(len(k)):
        for p in range(P):
            slot, start, count = p * (B // P) + span.local[p], span.start[p], span.count[p]
            all_k[first_layer + layer, slot, :, :, start : start + count] = k[
                layer, p, :, :, :count
            ]
            all_v[first_layer + layer, slot, :, start : start + count] = v[layer, p, :, :count]
    return all_k, all_v


S = KEY_BLOCK
SPANS = {
    "all of it": ([2], [0], [T]),
    "less than T": ([0], [40], [3]),
    "to the end": ([3], [S - T], [T]),
    "close to the end": ([3], [S - 5], [5]),
    "the last token": ([1], [S - 1], [1]),
    "nothing": ([1], [7], [0]),
    "nothing at the end": ([1], [S], [0]),
    "two shares": ([1, 0], [S - 2, 9], [2, T]),
    "an idle share": ([1, 0], [30, 0], [0, 6]),
}


@pytest.mark.parametrize("first_layer, layers", [(0, 3), (1, 1)])
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_write_span_writes_its_tokens_and_nothing_else(span, first_layer, layers):
    rng = np.random.default_rng(0)
    span = make_span(*span)
    cache = make_cache(rng, [9] * B, S, layers=3)
    k, v = make_part(rng, len(span.local), layers)
    out = write(cache, k, v, span, first_layer)
    wanted_k, wanted_v = written(cache, k, v, span, first_layer)
    np.testing.assert_array_equal(out.k, wanted_k)
    np.testing.assert_array_equal(out.v, wanted_v)
    for name in ("positions", "lengths", "finite"):  # those are for `mark_span`
        np.testing.assert_array_equal(getattr(out, name), getattr(cache, name))


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_shares_are_written_as_slots_one_by_one(int8):
    rng = np.random.default_rng(1)
    cache = make_cache(rng, [9] * B, S, int8=int8)
    k, v = make_part(rng, 2, L)
    span = make_span([1, 0], [S - 3, 5], [3, 7])
    together = write(cache, k, v, span, 0)
    for p, slot in enumerate((1, 2)):
        one = make_span([slot], [span.start[p]], [span.count[p]])
        cache = write(cache, k[:, p : p + 1], v[:, p : p + 1], one, 0)
    assert len(jax.tree.leaves(cache)) == (7 if int8 else 5)
    jax.tree.map(np.testing.assert_array_equal, together, cache)


@pytest.mark.parametrize("count", [T, 3])
def test_int8_codes_are_within_half_a_step(count):
    """Whatever the padding holds: the scales are those of the tokens that are written."""
    rng = np.random.default_rng(2)
    cache = make_cache(rng, [9] * B, S, int8=True)
    k, v = make_part(rng, 2, 1)
    k[..., count:], v[..., count:, :] = 1e6, 1e6
    k[0, 1, 0, 3, :count] = 0  # a channel of zeros
    out = write(cache, k, v, make_span([1, 1], [0, 0], [count, 0]), 1)
    assert out.k.dtype == out.v.dtype == np.int8
    k, v = k[0, 0, :, :, :count], v[0, 0, :, :count]
    k_step = np.abs(k).max(-1, keepdims=True) / 127
    v_step = np.abs(v).max(-1, keepdims=True) / 127
    read_k = np.asarray(out.k)[1, 1, :, :, :count] * np.asarray(out.k_scale)[1, 1][..., None]
    read_v = np.asarray(out.v)[1, 1, :, :count] * np.asarray(out.v_scale)[1, 1, :, :count, None]
    assert (np.abs(read_k - k) <= k_step * 0.5001).all()
    assert (np.abs(read_v - v) <= v_step * 0.5001).all()
    # The other layer, the other slots (that of the idle share among them), the tokens behind.
    for name, token_axis in [("k", 4), ("v", 3), ("k_scale", None), ("v_scale", 3)]:
        old, new = np.array(getattr(cache, name)), np.array(getattr(out, name))
        index = [1, 1] + [slice(None)] * (old.ndim - 2)
        if token_axis is not None:
            index[token_axis] = slice(0, count)
        assert (old[tuple(index)] != new[tuple(index)]).any()
        old[tuple(index)] = new[tuple(index)]
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_what_is_not_finite_is_never_written(int8, bad):
    rng = np.random.default_rng(3)
    cache = make_cache(rng, [9] * B, S, int8=int8)
    k, v = make_part(rng, 1, L)
    k[0, 0, 1, 2, 3], v[1, 0, 0, 4, 5], k[..., 7] = bad, bad, bad
    out = write(cache, k, v, make_span([2], [0], [6]), 0)
    for leaf in jax.tree.leaves(out):
        assert np.isfinite(leaf).all()
    assert out.k[0, 2, 1, 2, 3] == 0 and out.v[1, 2, 0, 4, 5] == 0
    if not int8:
        np.testing.assert_array_equal(out.k[1, 2, :, :, :6], k[1, 0, :, :, :6])


# Positions, lengths and marks.


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_mark_span(span):
    rng = np.random.default_rng(4)
    span = make_span(*span)
    P = len(span.local)
    cache = make_cache(rng, [50, 60, 70, 80], S)
    positions = rng.integers(100, 200, (P, T)).astype(np.int32)
    out = jax.jit(mark_span)(cache, positions, span)
    places, lengths = np.array(cache.positions), np.array(cache.lengths)
    for p in range(P):
        slot, start, count = p * (B // P) + span.local[p], span.start[p], span.count[p]
        places[slot, start : start + count] = positions[p, :count]
        if count:
            lengths[slot] = start + count
    np.testing.assert_array_equal(out.positions, places)
    np.testing.assert_array_equal(out.lengths, lengths)
    np.testing.assert_array_equal(out.k, cache.k)


def test_a_mark_stays_until_the_next_request():
    """A slot whose numbers were not finite stays marked for the rest of its request, and a span
    from the start begins another."""
    cache = make_cache(np.random.default_rng(5), [0] * B, S)
    positions = np.zeros((2, T), np.int32)

    def marked(cache, start, count, finite=None):
        finite = None if finite is None else np.array(finite)
        out = jax.jit(mark_span)(cache, positions, make_span([1, 0], start, count), finite)
        return out, out.finite.tolist()

    cache, marks = marked(cache, [0, 0], [5, 5], [False, True])
    assert marks == [True, False, True, True]
    cache, marks = marked(cache, [5, 5], [5, 5], [True, False])
    assert marks == [True, False, False, True]
    _, idle = marked(cache, [0, 0], [0, 5])
    assert idle == [True, False, True, True]  # a share without tokens is as it was
    cache, marks = marked(cache, [10, 10], [5, 5])
    assert marks == [True, False, False, True]
    _, marks = marked(cache, [0, 0], [5, 5], [True, False])
    assert marks == [True, True, False, True]
    _, marks = marked(cache, [0, 0], [5, 5])
    assert marks == [True] * 4


# One token more.


def test_append():
    """To an empty slot, over the end of a block, to a full one that does not grow, and to the last
    place."""
    rng = np.random.default_rng(6)
    cache = make_cache(rng, [0, KEY_BLOCK, 2 * KEY_BLOCK, 2 * KEY_BLOCK - 1])
    grows = np.array([True, True, False, True])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    k, v, positions = draw(L, B, K, H), draw(L, B, K, H), np.arange(500, 504)
    out = jax.jit(append)(cache, k, v, positions, grows)
    all_k, all_v, places = np.array(cache.k), np.array(cache.v), np.array(cache.positions)
    for b in np.flatnonzero(grows):
        at = cache.lengths[b]
        all_k[:, b, :, :, at], all_v[:, b, :, at], places[b, at] = k[:, b], v[:, b], positions[b]
    np.testing.assert_array_equal(out.k, all_k)
    np.testing.assert_array_equal(out.v, all_v)
    np.testing.assert_array_equal(out.positions, places)
    assert out.lengths.tolist() == [1, KEY_BLOCK + 1, 2 * KEY_BLOCK, 2 * KEY_BLOCK]
    assert np.asarray(out.finite).all()


@pytest.mark.parametrize("mesh", [None, MeshConfig(2, 2, 2)], ids=["one device", "a mesh"])
def test_append_marks_and_stores_no_nan(mesh):
    rng = np.random.default_rng(7)
    cache = make_cache(rng, [3] * B, S)
    k, v = np.ones((L, B, K, H), np.float32), np.ones((L, B, K, H), np.float32)
    k[1, 1, 0, 2] = np.nan
    v[0, 2, 1, 3] = np.inf
    k[1, 3] = np.nan  # does not grow: nothing of it comes in, not even the mark
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:8])) if mesh else contextlib.nullcontext():
        out = jax.jit(append)(cache, k, v, np.zeros(B, int), np.array([True, True, True, False]))
    assert out.finite.tolist() == [True, False, False, True]
    assert np.isfinite(out.k).all() and np.isfinite(out.v).all()
    assert out.k[1, 1, 0, 2, 3] == 0 and out.v[0, 2, 1, 3, 3] == 0 and out.k[0, 1, 0, 2, 3] == 1
    np.testing.assert_array_equal(out.k[:, 3], cache.k[:, 3])
    # A mark stays.
    zeros = np.zeros_like(v)
    again = jax.jit(append)(out, zeros, zeros, np.zeros(B, int), np.ones(B, bool))
    assert again.finite.tolist() == [True, False, False, True]


def test_what_is_written_and_appended_is_read():
    """A prompt in two chunks and two decoded tokens, read as one causal pass over all of it."""
    rng = np.random.default_rng(8)
    cache = make_cache(rng, [0] * B, S)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    q, k, v = draw(1, 13, N, H), draw(1, 13, K, H), draw(1, 13, K, H)
    place = np.arange(13, dtype=np.int32)[None]
    own = KeyValues(k, v, place, np.ones_like(place))
    whole = dense(q, own, [], [], [0], 1, CAUSAL)[0]

    def chunk(cache, start, count):
        pad = lambda x: np.pad(
            x[:, start : start + count], ((0, 0), (0, T - count), (0, 0), (0, 0))
        )
        part_k, part_v = pad(k), pad(v)
        positions = np.pad(place[:, start : start + count], ((0, 0), (0, T - count)))
        segments = (np.arange(T) < count)[None].astype(np.int32)
        keys = KeyValues(part_k, part_v, positions, segments)
        out = attention(pad(q), keys, [cache], [[start]], [2], mode=CAUSAL)
        np.testing.assert_allclose(out[0, :count], whole[start : start + count], atol=3e-6)
        span = make_span([2], [start], [count])
        stacked = lambda x: np.broadcast_to(x[None], (L, *x.shape))
        cache = write(
            cache, stacked(part_k.transpose(0, 2, 3, 1)), stacked(part_v.swapaxes(1, 2)), span, 0
        )
        return mark_span(cache, positions, span)

    cache = chunk(chunk(cache, 0, T), T, 3)
    for t in (11, 12):
        token = lambda x: np.broadcast_to(x[:, t : t + 1], (B, *x[:, t : t + 1].shape[1:]))
        own = KeyValues(token(k), token(v), token(place), np.ones((B, 1), np.int32))
        out = attention(token(q), own, [cache], [cache.lengths], mode=CAUSAL)
        np.testing.assert_allclose(out[2, 0], whole[t], atol=3e-6)
        by_layer = lambda x: np.broadcast_to(x[:, t][None], (L, B, K, H))
        cache = append(cache, by_layer(k), by_layer(v), np.full(B, t), np.arange(B) == 2)
    assert cache.lengths.tolist() == [0, 0, 13, 0]
    assert cache.positions[2, :13].tolist() == list(range(13))


# Several devices.


def test_slots_split_over_devices():
    """Eight slots in four shares, heads over two devices: written, appended to and read as on one
    device."""
    rng = np.random.default_rng(9)
    slots, P = 8, 4
    lengths = np.array([0, 1, 40, 200, 250, 9, 30, 255], np.int32)
    cache = make_cache(rng, lengths, S)
    k, v = make_part(rng, P, L)
    span = make_span([1, 0, 1, 0], [lengths[1], lengths[2], lengths[5], lengths[6]], [T, 3, 0, 5])
    positions = rng.integers(0, 40, (P, T)).astype(np.int32)
    k_token, v_token = rng.normal(size=(2, L, slots, K, H)).astype(np.float32)
    q, own = make_tokens(rng, slots, 1)
    prompt_q, prompt_own = make_tokens(rng, P, T)

    def run(cache, k, v, span, positions, k_token, v_token, q, own, prompt_q, prompt_own):
        cache = constrained(mark_span(write_span(cache, k, v, span), positions, span))
        cache = append(cache, k_token, v_token, np.arange(slots), jnp.arange(slots) % 3 > 0)
        read = lambda q, own, lengths, local: slot_attention(
            q, own, SlotRows([cache], [lengths], local), jnp.int32(1), mode=CAUSAL
        )
        decoded = read(q, own, cache.lengths, None)
        return (
            cache,
            decoded,
            read(prompt_q, prompt_own, pick(cache.lengths, span.local), span.local),
        )

    arrays = (cache, k, v, span, positions, k_token, v_token, q, own, prompt_q, prompt_own)
    wanted = jax.jit(run)(*arrays)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])):
        out = jax.jit(run)(*arrays)
    assert len(out[0].k.sharding.device_set) == 8 and not out[0].k.is_fully_replicated
    for split, whole in zip(jax.tree.leaves(out[0]), jax.tree.leaves(wanted[0])):
        np.testing.assert_array_equal(split, whole)
    np.testing.assert_array_equal(out[1], wanted[1])
    np.testing.assert_allclose(out[2], wanted[2], atol=1e-6)
