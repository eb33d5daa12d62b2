"""Documents in the cache give the numbers of one pass over the composition under an explicit dense
mask."""

import dataclasses
import functools

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.cache import cache_from, empty_cache, insert, rotate_keys
from grit_jax.models.config import ModelConfig, RopeScaling
from grit_jax.models.rotary import Rotation, rotate
from grit_jax.models.transformer import Transformer, parameter_shapes
from grit_jax.types import KV, AttentionMode

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    qk_norm=True,
    attention_bias=True,
    initializer_range=0.3,
    dtype="float32",
    remat="none",
)
YARN = RopeScaling("yarn", 4.0, original_max_position_embeddings=8, beta_fast=2.0, beta_slow=0.25)
CONFIGS = {
    "full": CONFIG,
    "window": dataclasses.replace(CONFIG, sliding_window=6),
    "yarn": dataclasses.replace(CONFIG, rope_scaling=YARN, rope_theta=30.0),
    "experts": dataclasses.replace(
        CONFIG,
        num_hidden_layers=3,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        mlp_only_layers=(1,),
    ),
    "gemma3": dataclasses.replace(
        CONFIG,
        num_hidden_layers=5,
        attention_bias=False,
        sliding_window=4,
        tie_word_embeddings=True,
        layer_types=(*("sliding_attention", "full_attention") * 2, "sliding_attention"),
        rope_local_base_freq=10.0,
        rope_scaling=RopeScaling("linear", 2.0),
        rope_theta=100.0,
        hidden_act="gelu_pytorch_tanh",
        zero_centered_norm=True,
        post_norms=True,
        scale_embeddings=True,
        query_pre_attn_scalar=12.0,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    ),
}
ORDERS = ((0, 1, 2), (2, 0), (1,))
# Every order where layers are alike and where they differ; the others once.
CASES = [
    (name, order)
    for name in CONFIGS
    for order in (ORDERS if name in ("full", "gemma3") else ORDERS[1:2])
]
LENGTHS = (5, 3, 4)  # of the documents; packed into one row of 14 slots, the last two empty
CONTINUATION = 6


@functools.cache
def random_params(config):
    """Random weights; biases and norms are not zeros and ones."""
    rng = np.random.default_rng(1)
    ones = 0 if config.zero_centered_norm else 1
    draw = lambda name, shape: ones * name.endswith("_norm") + 0.3 * rng.normal(size=shape)
    return {
        name: draw(name, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def reference(tokens, mask, config=CONFIG):
    """Logits `[T, V]` of one text under an explicit mask."""
    return dense.forward(random_params(config), config, tokens, np.arange(len(tokens)), mask).logits


def composition(order, continuation=CONTINUATION):
    """Mask of documents in `order`, each bidirectional and blind to the others, and a causal
    continuation."""
    return dense.composition_mask([LENGTHS[document] for document in order], continuation)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, n) for n in LENGTHS], rng.integers(0, 64, CONTINUATION)


def packed(documents):
    """The documents in one row with their own positions and segments, and where each begins."""
    segments = np.concatenate(
        [np.full(len(d), i + 1) for i, d in enumerate(documents)] + [np.zeros(2, int)]
    )
    tokens = np.concatenate([*documents, np.zeros(2, int)])
    positions = np.concatenate([np.arange(len(d)) for d in documents] + [np.zeros(2, int)])
    return tuple(jnp.asarray(x, jnp.int32)[None] for x in (tokens, positions, segments))


@functools.partial(jax.jit, static_argnames="config")
def encode(params, tokens, positions, segments, *, config):
    return Transformer(config, params)(
        tokens, positions, segments, mode=BIDIRECTIONAL, return_kv=True
    ).kv


@functools.partial(jax.jit, static_argnames="config")
def read_on(params, cache, tokens, positions, segments, *, config):
    model = Transformer(config, params)
    out = model(tokens, positions, segments, mode=CAUSAL, cache=cache, return_kv=True)
    return model.logits(out.hidden), out.kv


jit_insert = jax.jit(insert, static_argnames="config")


def record(kv, document):
    """The record of one document out of a packed pass."""
    start = sum(LENGTHS[:document])
    return part(kv, start, start + LENGTHS[document])


def part(kv, start, stop):
    """The tokens `start` to `stop` of a pass."""
    return KV(kv.k[..., start:stop], kv.v[..., start:stop, :])


def fill(kv, order, slots, config=CONFIG):
    """A cache with the documents inserted one after the other, and the place behind them."""
    cache, place = empty_cache(config, 1, slots), 0
    for document in order:
        n = LENGTHS[document]
        positions = jnp.arange(place, place + n)[None]
        cache = jit_insert(
            cache, record(kv, document), positions, jnp.ones((1, n), jnp.int32), config=config
        )
        place += n
    return cache, place


@pytest.mark.parametrize("name, order", CASES, ids=lambda part: str(part).replace(" ", ""))
def test_documents_in_any_order(texts, name, order):
    """Read at once, and read token by token, each new token inserted after it was read."""
    config, (documents, continuation) = CONFIGS[name], texts
    params = random_params(config)
    kv = encode(params, *packed(documents), config=config)
    tokens = np.concatenate([*(documents[d] for d in order), continuation])
    expected = reference(tokens, composition(order), config)[-CONTINUATION:]

    cache, place = fill(kv, order, 24, config)  # more slots than needed: empty ones are not seen
    assert (int(cache.cursor), cache.slots) == (place, 24)
    ones = jnp.ones((1, CONTINUATION), jnp.int32)
    positions = jnp.arange(place, place + CONTINUATION)[None]
    logits, _ = read_on(
        params, cache, jnp.asarray(continuation)[None], positions, ones, config=config
    )
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)
    for i, token in enumerate(continuation):
        step = jnp.array([[token]]), positions[:, i : i + 1], ones[:, :1]
        logits, own = read_on(params, cache, *step, config=config)
        np.testing.assert_allclose(logits[0, 0], expected[i], atol=1e-4)
        cache = jit_insert(cache, own, positions[:, i : i + 1], ones[:, :1], config=config)


def test_several_examples_in_a_row_and_ragged_rows(params, texts):
    """Training's layout: one cache of the whole packed pass; each text reads the documents it
    owns."""
    documents, continuation = texts
    kv = encode(params, *packed(documents), config=CONFIG)
    # Text 1 reads documents 2 then 0, text 2 reads document 1, text 3 nothing.
    owner = np.array([1] * 5 + [2] * 3 + [1] * 4 + [0] * 2)
    places = np.concatenate([np.arange(4, 9), np.arange(3), np.arange(4), [0, 0]])
    cache = cache_from(kv, jnp.asarray(places)[None], jnp.asarray(owner)[None], CONFIG)
    plans = (((2, 0), 3), ((1,), 2), ((), 1))
    segments = np.array([1] * 3 + [2] * 2 + [3])
    positions = np.concatenate([np.arange(9, 12), np.arange(3, 5), [0]])
    rows = (jnp.asarray(x)[None] for x in (continuation, positions, segments))
    logits, _ = read_on(params, cache, *rows, config=CONFIG)
    start = 0
    for order, length in plans:
        own = continuation[start : start + length]
        tokens = np.concatenate([*(documents[d] for d in order), own]).astype(int)
        expected = reference(tokens, composition(order, length))
        np.testing.assert_allclose(logits[0, start : start + length], expected[-length:], atol=1e-4)
        start += length


# "gemma3" has full layers, too: it is the sample of the default suite.
@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "experts")), "gemma3"],
)
def test_gradients_reach_the_documents(texts, name):
    config, (documents, continuation) = CONFIGS[name], texts
    order = (2, 0, 1)
    tokens = np.concatenate([*(documents[d] for d in order), continuation])
    weight = np.random.default_rng(3).normal(size=(CONTINUATION, 64)).astype(np.float32)
    owner = jnp.asarray([[1] * 12 + [0] * 2])
    places = jnp.asarray(np.concatenate([np.arange(4, 9), np.arange(9, 12), np.arange(4), [0, 0]]))[
        None
    ]
    positions = jnp.arange(12, 12 + CONTINUATION)[None]

    def cached(params):
        kv = encode(params, *packed(documents), config=config)
        cache = cache_from(kv, places, owner, config)
        rows = jnp.asarray(continuation)[None], positions, jnp.ones_like(positions)
        return jnp.sum(weight * read_on(params, cache, *rows, config=config)[0][0])

    def whole(params):
        places = np.arange(len(tokens))
        logits = dense.forward(params, config, tokens, places, composition(order), xp=jnp).logits
        return jnp.sum(weight * logits[-CONTINUATION:])

    params = jax.tree.map(jnp.asarray, random_params(config))
    ours, theirs = jax.jit(jax.grad(cached))(params), jax.jit(jax.grad(whole))(params)
    for name in params:
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(
            ours[name] / scale, theirs[name] / scale, atol=1e-4, err_msg=name
        )


def test_keys_are_rotated_once(params, texts):
    """At insertion, to the place they get; what is in the cache is never touched again, nor is the
    record."""
    kv = encode(params, *packed(texts[0]), config=CONFIG)
    before = np.asarray(kv.k)
    cache, _ = fill(kv, (1, 2), 10)
    frequencies = CONFIG.rope_theta ** (-np.arange(0, 8, 2) / 8)
    angles = np.arange(3, 7)[:, None, None] * frequencies  # document 2 stands at 3 ... 6
    a, b = np.split(np.moveaxis(np.asarray(record(kv, 2).k)[:, 0], -1, 1), 2, axis=-1)
    turned = np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )
    np.testing.assert_allclose(jnp.moveaxis(cache.k, -1, 2)[:, 0, 3:7], turned, atol=1e-5)
    np.testing.assert_array_equal(cache.v[:, 0, :, 3:7], record(kv, 2).v[:, 0])
    np.testing.assert_array_equal(cache.positions[0, :7], np.arange(7))
    np.testing.assert_array_equal(cache.segments[0], [1] * 7 + [0] * 3)

    more = part(kv, 0, 3)
    later = jit_insert(
        cache, more, jnp.arange(7, 10)[None], jnp.ones((1, 3), jnp.int32), config=CONFIG
    )
    np.testing.assert_array_equal(later.k[..., :7], cache.k[..., :7])
    np.testing.assert_array_equal(kv.k, before)
    zeros = jnp.zeros((1, 3), jnp.int32)
    np.testing.assert_array_equal(rotate_keys(more, zeros, zeros + 1, CONFIG), more.k)


def test_rotations_add_up():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    frequencies = 10000.0 ** (-jnp.arange(0, 8, 2) / 8)
    turn = lambda x, n: rotate(
        x, Rotation(*(f(jnp.full((1, 4, 1), n) * frequencies) for f in (jnp.cos, jnp.sin)))
    )
    np.testing.assert_allclose(turn(turn(x, 5), 9), turn(x, 14), atol=1e-5)


def test_cache_dtype_follows_the_computation():
    narrow = dataclasses.replace(CONFIG, dtype="bfloat16")
    assert empty_cache(narrow, 2, 3).k.dtype == jnp.bfloat16
    cache = empty_cache(narrow, 2, 3, jnp.float32)
    assert (
        cache.v.dtype == jnp.float32
        and cache.v.shape == (2, 2, 2, 3, 8)
        and cache.k.shape == (2, 2, 2, 8, 3)
    )
    k, v = jnp.ones((2, 2, 2, 8, 1), jnp.bfloat16), jnp.ones((2, 2, 2, 1, 8), jnp.bfloat16)
    marks = jnp.ones((2, 1), jnp.int32)
    assert insert(cache, KV(k, v), marks, marks, narrow).k.dtype == jnp.float32


def test_documents_cannot_be_cached_under_scaling_by_length():
    config = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("dynamic", 2.0))
    kv = KV(jnp.zeros((2, 1, 2, 8, 3)), jnp.zeros((2, 1, 2, 3, 8)))
    marks = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(GritError, match="dynamic.*documents cannot be cached"):
        cache_from(kv, marks, marks, config)
