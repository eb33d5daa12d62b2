"""The transformer: how it computes never changes what it computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grit_jax.models.cache import cache_from
from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import rms_norm
from grit_jax.models.lora import LoraConfig, attach, init_adapters
from grit_jax.models.transformer import Transformer, init_params, parameter_shapes
from grit_jax.types import AttentionMode

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    dtype="float32",
    remat="none",
    sliding_window=5,
)
B, T = 2, 9


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    draw = lambda name, shape: name.endswith("_norm") + 0.3 * rng.normal(size=shape)
    return {
        name: draw(name, shape).astype(np.float32)
        for name, shape in parameter_shapes(CONFIG).items()
    }


@pytest.fixture(scope="module")
def rows():
    """Tokens, positions, segments: two texts and padding in the first row, one in the second."""
    tokens = np.random.default_rng(0).integers(0, 40, (B, T))
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], list(range(9))])
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9])
    return tuple(jnp.asarray(x, jnp.int32) for x in (tokens, positions, segments))


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def forward(params, rows, *, config=CONFIG, mode=CAUSAL):
    """Logits and the keys and values."""
    model = Transformer(config, params)
    out = model(*rows, mode=mode, return_kv=True)
    return model.logits(out.hidden), out.kv


@functools.partial(jax.jit, static_argnames="config")
def gradients(params, rows, *, config=CONFIG):
    def loss(params):
        model = Transformer(config, params)
        hidden = model(*rows, mode=BIDIRECTIONAL).hidden
        return jnp.sum(jax.nn.log_softmax(model.logits(hidden))[..., 0] * (rows[2] > 0))

    return jax.grad(loss)(params)


def assert_equal(ours, theirs, atol=1e-5):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": False},
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "full", "scan_layers": False},
    ],
    ids=str,
)
def test_scan_and_remat_change_nothing(params, rows, change):
    config = dataclasses.replace(CONFIG, **change)
    if not config.scan_layers:  # remat has no part in a forward pass
        assert_equal(forward(params, rows, config=config), forward(params, rows))
    assert_equal(gradients(params, rows, config=config), gradients(params, rows))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_remat_dots_keeps_each_product_of_an_adapted_layer_once(rows, precision):
    """All floats kept for the backward pass: those of the layers' products and inputs, and none of
    the products with the adapters' factors."""
    config = dataclasses.replace(CONFIG, remat="dots", hidden_size=64, intermediate_size=96)
    params, lora = init_params(config, jax.random.key(0)), LoraConfig(rank=2)
    adapters = init_adapters(lora, parameter_shapes(config), jax.random.key(1))

    def loss(adapters):
        model = Transformer(config, attach(params, adapters, lora))
        return jnp.sum(model(*rows, mode=BIDIRECTIONAL).hidden)

    with jax.default_matmul_precision(precision):
        _, pull = jax.vjp(loss, adapters)
    F, L = config.intermediate_size, config.num_hidden_layers
    kept = [x.size for x in jax.tree.leaves(pull) if x.shape[:1] == (L,) and x.shape[-1] == F]
    assert sum(size == L * B * T * F for size in kept) == 2  # gate and up


def test_packing_changes_nothing(params, rows):
    """In both modes, each text alone (padded to the same shape) has the numbers it has in a shared
    row."""
    tokens, positions, segments = rows
    alone = np.zeros((3, B, T), np.int32)  # one text a row
    texts = ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(0, 9)))
    for row, (b, part) in enumerate(texts[:2]):
        n = part.stop - part.start
        alone[:, row, :n] = np.stack([tokens[b, part], np.arange(n), np.ones(n)])
    for mode in (BIDIRECTIONAL, CAUSAL):
        together, single = (
            forward(params, x, mode=mode)[0] for x in (rows, tuple(jnp.asarray(alone)))
        )
        for row, (b, part) in enumerate(texts[:2]):
            np.testing.assert_allclose(
                together[b, part], single[row, : part.stop - part.start], atol=1e-5
            )


def test_causal_is_blind_to_later_tokens_and_bidirectional_is_not(params, rows):
    tokens, *marks = rows
    other = tokens.at[1, 4].set((tokens[1, 4] + 1) % 40)
    for mode, seen in ((CAUSAL, False), (BIDIRECTIONAL, True)):
        before, after = (forward(params, (t, *marks), mode=mode)[0][1] for t in (tokens, other))
        changed = np.abs(before - after).max(-1) > 1e-6
        assert changed[:4].any() == seen and changed[4:].all()


def test_blocks_of_rows_in_different_modes(params, rows):
    mixed, kv = forward(params, rows, mode=((BIDIRECTIONAL, 1), (CAUSAL, 1)))
    apart = [forward(params, rows, mode=mode) for mode in (BIDIRECTIONAL, CAUSAL)]
    valid = np.asarray(rows[2]) > 0
    for row in range(2):
        np.testing.assert_allclose(
            mixed[row][valid[row]], apart[row][0][row][valid[row]], atol=1e-5
        )
        np.testing.assert_allclose(
            kv.k[:, row][..., valid[row]], apart[row][1].k[:, row][..., valid[row]], atol=1e-5
        )


def test_returned_keys_are_before_rotary_embedding(params, rows):
    """So the same text elsewhere (positions shifted by 100) leaves the same record behind."""
    _, kv = forward(params, rows, mode=BIDIRECTIONAL)
    first = rms_norm(params["embed"][rows[0]], params["attention_norm"][0], CONFIG.rms_norm_eps)
    by_token = kv.k[0].transpose(0, 3, 1, 2), kv.v[0].transpose(0, 2, 1, 3)  # [B T K H]
    for part, weight in zip(by_token, ("key", "value"), strict=True):
        np.testing.assert_allclose(part.reshape(B, T, -1), first @ params[weight][0], atol=1e-5)
    _, moved = forward(params, (rows[0], rows[1] + 100, rows[2]), mode=BIDIRECTIONAL)
    valid = np.asarray(rows[2]) > 0
    keys, keys_moved = (np.moveaxis(np.asarray(x.k), -1, 2)[:, valid] for x in (kv, moved))
    np.testing.assert_allclose(keys, keys_moved, atol=1e-4)


def test_bfloat16_computes_near_float32(params, rows):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    (logits, kv), (expected, _) = forward(params, rows, config=config), forward(params, rows)
    assert logits.dtype == jnp.float32 and kv.k.dtype == jnp.bfloat16
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_the_module_is_its_parameters(params):
    model = Transformer(CONFIG, params)
    assert {name: value.shape for name, value in model.params().items()} == parameter_shapes(CONFIG)
    state = nnx.state(model, nnx.Param)
    assert set(state) == set(params)
    assert Transformer(CONFIG, rngs=nnx.Rngs(0)).params()["up"].shape == (2, 16, 24)
    with pytest.raises(ValueError, match="params or rngs"):
        Transformer(CONFIG)


@pytest.mark.parametrize("mode", [BIDIRECTIONAL, CAUSAL])
@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
def test_one_token_that_is_not_finite_leaves_the_texts_beside_it_alone(experts, mode):
    """Token 39's row of the table holds a NaN; the text with it is NaN, the others the same bits as
    without it. A second pass reads the first one's keys from a cache."""
    config = dataclasses.replace(CONFIG, num_experts=experts, moe_intermediate_size=8)
    weights = init_params(config, jax.random.key(0))
    weights["embed"] = weights["embed"].at[39, 3].set(jnp.nan)
    tokens = np.random.default_rng(0).integers(0, 39, (B, T))
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 0, 1, 2, 0, 1, 2, 3]])
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 2, 3, 3, 3, 3]])
    broken = tokens.copy()
    broken[0, 5] = broken[1, 1] = broken[0, 8] = 39  # two texts, and padding
    text = ((segments == [[2], [1]]) & (segments > 0)).astype(bool)

    @jax.jit
    def run(tokens):
        model = Transformer(config, weights)
        first = model(tokens, positions, jnp.asarray(segments), mode=mode, return_kv=True)
        cache = cache_from(first.kv, positions, jnp.asarray(segments), config)
        again = model(jnp.asarray(tokens) * 0, positions + 4, segments, mode=mode, cache=cache)
        return first.hidden, again.hidden

    for out, expected in zip(run(broken), run(tokens), strict=True):
        out, expected = np.asarray(out), np.asarray(expected)
        neighbours = (segments > 0) & ~text
        assert np.isfinite(expected).all() and np.isnan(out[text]).all()
        np.testing.assert_array_equal(out[neighbours], expected[neighbours])
