"""Documents in the cache give the numbers of one pass over the composition under an explicit dense mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.cache import cache_from, empty_cache, insert, rotate_keys
from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import rotary_angles, rotate
from grit_jax.models.transformer import Transformer, parameter_shapes
from grit_jax.types import KV, AttentionMode

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, qk_norm=True, attention_bias=True, initializer_range=0.3,
    dtype="float32",    remat="none",
)  # fmt: skip
WINDOWED = ModelConfig(**{**CONFIG.__dict__, "sliding_window": 6})
LENGTHS = (5, 3, 4)  # of the documents; packed into one row of 14 slots, the last two empty
CONTINUATION = 6


@pytest.fixture(scope="module")
def params():
    """Random weights; biases and norms are not zeros and ones."""
    rng = np.random.default_rng(1)
    draw = lambda name, shape: name.endswith("_norm") + 0.3 * rng.normal(size=shape)
    return {name: draw(name, shape).astype(np.float32) for name, shape in parameter_shapes(CONFIG).items()}


def reference(params, tokens, positions, mask, *, config=CONFIG, xp=np):
    """Logits `[T, V]` of one text under an explicit mask, written out by hand; `xp` is NumPy or jax.numpy."""
    c, w = config, params
    norm = lambda x, weight: x / xp.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps) * weight
    angle = positions[:, None] / c.rope_theta ** (np.arange(0, c.head_dim, 2) / c.head_dim)
    turn = np.exp(1j * angle)[:, None]  # rotary embedding as a complex product of the two halves

    def rotated(x):
        half = c.head_dim // 2
        y = (x[..., :half] + 1j * x[..., half:]) * turn
        return xp.concatenate([y.real, y.imag], -1)

    x = w["embed"][tokens]
    for i in range(c.num_hidden_layers):
        h = norm(x, w["attention_norm"][i])
        q, k, v = (h @ w[name][i] + w[f"{name}_bias"][i] for name in ("query", "key", "value"))
        q, k, v = (y.reshape(len(tokens), -1, c.head_dim) for y in (q, k, v))
        q, k = rotated(norm(q, w["query_norm"][i])), rotated(norm(k, w["key_norm"][i]))
        k, v = (xp.repeat(y, c.heads_per_kv, axis=1) for y in (k, v))
        p = mask * xp.exp(xp.einsum("tnh,snh->nts", q, k) / np.sqrt(c.head_dim))
        out = xp.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v)
        x = x + out.reshape(len(tokens), -1) @ w["attention_out"][i]
        h = norm(x, w["mlp_norm"][i])
        gate = h @ w["gate"][i]
        x = x + (gate / (1 + xp.exp(-gate)) * (h @ w["up"][i])) @ w["down"][i]
    return norm(x, w["final_norm"]) @ w["head"]


def composition(order, continuation=CONTINUATION, window=None):
    """Mask of documents in `order`, each bidirectional and blind to the others, and a causal continuation."""
    owner = np.concatenate([np.full(LENGTHS[d], d) for d in order] + [np.full(continuation, -1)])
    place = np.arange(len(owner))
    mask = (owner[:, None] == owner[None, :]) & (owner[:, None] >= 0)
    mask |= (owner[:, None] < 0) & (place[None, :] <= place[:, None])
    return mask if window is None else mask & (np.abs(place[:, None] - place[None, :]) < window)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, n) for n in LENGTHS], rng.integers(0, 64, CONTINUATION)


def packed(documents):
    """The documents in one row with their own positions and segments, and where each begins."""
    segments = np.concatenate([np.full(len(d), i + 1) for i, d in enumerate(documents)] + [np.zeros(2, int)])
    tokens = np.concatenate([*documents, np.zeros(2, int)])
    positions = np.concatenate([np.arange(len(d)) for d in documents] + [np.zeros(2, int)])
    return tuple(jnp.asarray(x, jnp.int32)[None] for x in (tokens, positions, segments))


@functools.partial(jax.jit, static_argnames="config")
def encode(params, tokens, positions, segments, *, config=CONFIG):
    return Transformer(config, params)(tokens, positions, segments, mode=BIDIRECTIONAL, return_kv=True).kv


@functools.partial(jax.jit, static_argnames="config")
def read_on(params, cache, tokens, positions, segments, *, config=CONFIG):
    model = Transformer(config, params)
    out = model(tokens, positions, segments, mode=CAUSAL, cache=cache, return_kv=True)
    return model.logits(out.hidden), out.kv


jit_insert = jax.jit(functools.partial(insert, config=CONFIG))


def record(kv, document):
    """The record of one document out of a packed pass."""
    start = sum(LENGTHS[:document])
    return jax.tree.map(lambda x: x[:, :, start : start + LENGTHS[document]], kv)


def fill(kv, order, slots):
    """A cache with the documents inserted one after the other, and the place behind them."""
    cache, place = empty_cache(CONFIG, 1, slots), 0
    for document in order:
        n = LENGTHS[document]
        positions = jnp.arange(place, place + n)[None]
        cache = jit_insert(cache, record(kv, document), positions, jnp.ones((1, n), jnp.int32))
        place += n
    return cache, place


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["full", "window"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0), (1,)], ids=str)
def test_documents_in_any_order(params, texts, order, config):
    """Read at once, and read token by token, each new token inserted after it was read."""
    documents, continuation = texts
    kv = encode(params, *packed(documents), config=config)
    tokens = np.concatenate([*(documents[d] for d in order), continuation])
    mask = composition(order, window=config.sliding_window)
    expected = reference(params, tokens, np.arange(len(tokens)), mask, config=config)[-CONTINUATION:]

    cache, place = fill(kv, order, 24)  # more slots than needed: empty ones are not seen
    assert (int(cache.cursor), cache.slots) == (place, 24)
    ones = jnp.ones((1, CONTINUATION), jnp.int32)
    positions = jnp.arange(place, place + CONTINUATION)[None]
    logits, _ = read_on(params, cache, jnp.asarray(continuation)[None], positions, ones, config=config)
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)
    for i, token in enumerate(continuation):
        step = jnp.array([[token]]), positions[:, i : i + 1], ones[:, :1]
        logits, own = read_on(params, cache, *step, config=config)
        np.testing.assert_allclose(logits[0, 0], expected[i], atol=1e-4)
        cache = jit_insert(cache, own, positions[:, i : i + 1], ones[:, :1])


def test_several_examples_in_a_row_and_ragged_rows(params, texts):
    """Training's layout: one cache of the whole packed pass; each text reads the documents it owns."""
    documents, continuation = texts
    kv = encode(params, *packed(documents))
    # Text 1 reads documents 2 then 0, text 2 reads document 1, text 3 nothing.
    owner = np.array([1] * 5 + [2] * 3 + [1] * 4 + [0] * 2)
    places = np.concatenate([np.arange(4, 9), np.arange(3), np.arange(4), [0, 0]])
    cache = cache_from(kv, jnp.asarray(places)[None], jnp.asarray(owner)[None], CONFIG)
    plans = (((2, 0), 3), ((1,), 2), ((), 1))
    segments = np.array([1] * 3 + [2] * 2 + [3])
    positions = np.concatenate([np.arange(9, 12), np.arange(3, 5), [0]])
    logits, _ = read_on(params, cache, *(jnp.asarray(x)[None] for x in (continuation, positions, segments)))
    start = 0
    for order, length in plans:
        own = continuation[start : start + length]
        tokens = np.concatenate([*(documents[d] for d in order), own]).astype(int)
        expected = reference(
            params, tokens, np.arange(len(tokens)), composition(order, length), config=CONFIG
        )
        np.testing.assert_allclose(logits[0, start : start + length], expected[-length:], atol=1e-4)
        start += length


def test_gradients_reach_the_documents(params, texts):
    documents, continuation = texts
    order = (2, 0, 1)
    tokens = np.concatenate([*(documents[d] for d in order), continuation])
    weight = np.random.default_rng(3).normal(size=(CONTINUATION, 64)).astype(np.float32)
    owner = jnp.asarray([[1] * 12 + [0] * 2])
    places = jnp.asarray(np.concatenate([np.arange(4, 9), np.arange(9, 12), np.arange(4), [0, 0]]))[None]
    positions = jnp.arange(12, 12 + CONTINUATION)[None]

    def cached(params):
        kv = encode(params, *packed(documents))
        cache = cache_from(kv, places, owner, CONFIG)
        ones = jnp.ones_like(positions)
        return jnp.sum(
            weight * read_on(params, cache, jnp.asarray(continuation)[None], positions, ones)[0][0]
        )

    def dense(params):
        logits = reference(params, tokens, np.arange(len(tokens)), composition(order), xp=jnp)
        return jnp.sum(weight * logits[-CONTINUATION:])

    ours, theirs = jax.jit(jax.grad(cached))(params), jax.jit(jax.grad(dense))(params)
    for name in params:
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(ours[name] / scale, theirs[name] / scale, atol=1e-4, err_msg=name)


def test_keys_are_rotated_once(params, texts):
    """At insertion, to the place they get; what is in the cache is never touched again, nor is the record."""
    kv = encode(params, *packed(texts[0]))
    before = np.asarray(kv.k)
    cache, _ = fill(kv, (1, 2), 10)
    frequencies = CONFIG.rope_theta ** (-np.arange(0, 8, 2) / 8)
    angles = np.arange(3, 7)[:, None, None] * frequencies  # document 2 stands at 3 ... 6
    a, b = np.split(np.asarray(record(kv, 2).k)[:, 0], 2, axis=-1)
    turned = np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )
    np.testing.assert_allclose(cache.k[:, 0, 3:7], turned, atol=1e-5)
    np.testing.assert_array_equal(cache.v[:, 0, 3:7], record(kv, 2).v[:, 0])
    np.testing.assert_array_equal(cache.positions[0, :7], np.arange(7))
    np.testing.assert_array_equal(cache.segments[0], [1] * 7 + [0] * 3)

    more = jax.tree.map(lambda x: x[:, :, :3], kv)
    later = jit_insert(cache, more, jnp.arange(7, 10)[None], jnp.ones((1, 3), jnp.int32))
    np.testing.assert_array_equal(later.k[:, :, :7], cache.k[:, :, :7])
    np.testing.assert_array_equal(kv.k, before)
    np.testing.assert_array_equal(rotate_keys(more, jnp.zeros((1, 3), jnp.int32), CONFIG), more.k)


def test_rotations_add_up():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    turn = lambda x, n: rotate(x, rotary_angles(jnp.full((1, 4), n), 8, 10000.0))
    np.testing.assert_allclose(turn(turn(x, 5), 9), turn(x, 14), atol=1e-5)


def test_cache_dtype_follows_the_computation():
    narrow = ModelConfig(**{**CONFIG.__dict__, "dtype": "bfloat16"})
    assert empty_cache(narrow, 2, 3).k.dtype == jnp.bfloat16
    cache = empty_cache(narrow, 2, 3, jnp.float32)
    assert cache.v.dtype == jnp.float32 and cache.v.shape == (2, 2, 3, 2, 8)
    ones = jnp.ones((2, 2, 1, 2, 8), jnp.bfloat16)
    marks = jnp.ones((2, 1), jnp.int32)
    assert insert(cache, KV(ones, ones), marks, marks, narrow).k.dtype == jnp.float32
