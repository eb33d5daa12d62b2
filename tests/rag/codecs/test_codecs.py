"""Codecs: codes and expansions by NumPy's arithmetic, how little is lost, how few bytes, and
calibrations that last."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.rag.codecs.codecs import (
    KINDS,
    calibrate,
    codec_from_bytes,
    compression_of,
    kind_of,
    sample_tokens,
    to_bytes,
)
from grit_jax.rag.codecs.pca import LEFT
from grit_jax.types import KV, DocumentKV

L, T, K, H = 2, 2000, 2, 12
CODECS = [kind for kind in KINDS if kind != "native"]


def sample(tokens: int = T, seed: int = 1) -> DocumentKV:
    """Keys and values of a hidden state of few dimensions, with outliers, key channels of very
    different size and place."""
    rng = np.random.default_rng(seed)
    ways = np.random.default_rng(99)
    hidden = rng.standard_t(5, (L, tokens, 10)) * 1.5 ** -np.arange(10)
    k, v = (
        np.einsum("ltd,ldx->ltx", hidden, ways.standard_normal((L, 10, K * H))) for _ in range(2)
    )
    k = k * np.exp(ways.standard_normal(K * H)) + 5 * ways.standard_normal(K * H)
    v += 0.05 * rng.standard_normal(v.shape)
    shape = (L, tokens, K, H)
    return Document(
        np.arange(tokens), k.reshape(shape).astype(np.float32), v.reshape(shape).astype(np.float32)
    )


@dataclasses.dataclass
class Document:
    """A document in the axis order that the arithmetic below is written in: `[L T K H]`."""

    tokens: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @property
    def record(self) -> DocumentKV:
        """In the axis order of the cache: `[L K H T]` and `[L K T H]`."""
        return DocumentKV(self.tokens, self.k.transpose(0, 2, 3, 1), self.v.swapaxes(1, 2))


SAMPLE, OTHER = sample(), sample(300, 2)


def kv(document: Document) -> KV:
    record = document.record
    return KV(record.k[:, None], record.v[:, None])


def tokens_first(kv: KV) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of row 0 as `[L T K H]`."""
    return np.asarray(kv.k)[:, 0].transpose(0, 3, 1, 2), np.asarray(kv.v)[:, 0].swapaxes(1, 2)


def through(kind: str, document: Document = OTHER) -> tuple[np.ndarray, np.ndarray]:
    codec = calibrate(kind, [SAMPLE.record])
    return tokens_first(jax.jit(lambda c, x: c.expand(c.pack(x)))(codec, kv(document)))


def loss(found: np.ndarray, array: np.ndarray) -> float:
    """Part of the variance that is lost."""
    return float(
        np.square(found - array).sum() / np.square(array - array.mean(1, keepdims=True)).sum()
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_scalar_codes_are_the_nearest(bits):
    codec = calibrate(f"int{bits}", [SAMPLE.record])
    low, step = np.asarray(codec.low)[:, None], np.asarray(codec.step)[:, None]
    # As the expressions below have them: tokens before heads.
    arrays = {name: np.asarray(array)[:, 0] for name, array in codec.pack(kv(OTHER)).items()}
    arrays = {
        name: np.moveaxis(array, 1 + codec.token_axes[name], 1) for name, array in arrays.items()
    }
    codes = lambda a: a if bits == 8 else np.concatenate([a & 15, a >> 4], -1)
    expected = np.clip(np.rint((OTHER.k - low) / step), 0, 2**bits - 1)
    assert (np.abs(codes(arrays["k"]) - expected) > 0).mean() < 1e-3  # halves may round either way
    # Values: nothing is cut off, and no error is larger than half a step of the range kept with the
    # token and head.
    ranges = arrays["v_range"].astype(np.float32)
    low, step = ranges[..., :1], ranges[..., 1:]
    assert (low <= OTHER.v).all() and (
        OTHER.v <= (low + step * (2**bits - 1)) * (1 + 1e-6) + 1e-6
    ).all()
    k, v = through(f"int{bits}")
    assert (np.abs(v - OTHER.v) <= 0.501 * step).all()
    spread = OTHER.v.max(-1, keepdims=True) - OTHER.v.min(-1, keepdims=True)
    assert (
        step <= 1.06 * spread / (2**bits - 1) + np.abs(OTHER.v).max() / 100 / (2**bits - 1)
    ).all()


def test_key_ranges_are_by_channel_and_leave_outliers_out():
    """One range for all channels, or the whole range of each, would lose several times as much."""
    k, _ = through("int4")
    whole_low, whole_high = SAMPLE.k.min(1, keepdims=True), SAMPLE.k.max(1, keepdims=True)
    step = (whole_high - whole_low) / 15
    whole = np.clip(np.rint((OTHER.k - whole_low) / step), 0, 15) * step + whole_low
    step = (SAMPLE.k.max() - SAMPLE.k.min()) / 15
    one = np.rint((OTHER.k - SAMPLE.k.min()) / step) * step + SAMPLE.k.min()
    each = np.square(OTHER.k - OTHER.k.mean(1, keepdims=True)).sum(1)
    relative = lambda found: np.mean(np.square(found - OTHER.k).sum(1) / each)
    assert relative(k) < 0.7 * relative(whole) < 0.1 * relative(one)
    # int8 has codes enough for room on both sides: what the sample did not have is not cut off.
    beyond = (OTHER.k < whole_low) | (OTHER.k > whole_high)
    assert (
        beyond.any()
        and np.abs(through("int8")[0] - OTHER.k)[beyond].max()
        < np.abs(k - OTHER.k)[beyond].max() / 4
    )


def test_axes_lose_less_with_fewer_bits():
    lost = {
        kind: [loss(a, b) for a, b in zip(through(kind), (OTHER.k, OTHER.v))] for kind in CODECS
    }
    assert max(lost["int8"]) < 1e-3 and max(lost["int4"]) < 0.05
    assert sum(lost["pca2"]) < sum(lost["int4"])


def test_axes_and_bits_of_a_transform():
    """Uncorrelated projections with most bits where the variance is; what a byte holds, bit by
    bit."""
    codec = calibrate("pca2", [SAMPLE.record])
    D = 2 * K * H
    bits, axes = np.asarray(codec.bits), np.asarray(codec.axes)
    assert (np.diff(bits, axis=1) <= 0).all() and (
        bits.sum(1) == 2 * D
    ).all()  # two bits a number, in every layer
    x = np.concatenate([SAMPLE.k.reshape(L, T, -1), SAMPLE.v.reshape(L, T, -1)], -1)
    c = np.einsum(
        "ltd,ldr->ltr",
        (x - np.asarray(codec.mean)[:, None]) / np.asarray(codec.scale)[:, None],
        axes,
    )
    for layer in c:
        correlation = np.corrcoef(layer.T[:8])
        np.testing.assert_allclose(correlation, np.eye(8), atol=1e-3)
    low, step = (np.asarray(array)[:, None] for array in (codec.low, codec.step))
    codes = np.clip(np.rint((c - low) / step), 0, 2.0 ** bits[:, None] - 1).astype(int)
    packed = np.asarray(codec.pack(kv(SAMPLE))["bits"])[:, 0]
    assert packed.shape == (L, T, D // 4) and packed.dtype == np.uint8
    stored = np.zeros_like(codes)
    for layer in range(L):
        byte = 0
        for group in range(bits.shape[1] // 8):
            for order in range(bits[layer, 8 * group]):
                found = packed[layer, :, byte, None] >> np.arange(8) & 1
                stored[layer, :, 8 * group : 8 * group + 8] |= found.astype(int) << order
                byte += 1
        assert byte == D // 4
    assert (stored != codes).mean() < 1e-3  # halves may round either way
    values = np.where(bits[:, None] > 0, low + stored * step, 0)
    y = (
        np.asarray(codec.mean)[:, None]
        + np.einsum("ltr,ldr->ltd", values, axes) * np.asarray(codec.scale)[:, None]
    )
    k, v = through("pca2", SAMPLE)
    found = np.concatenate([k.reshape(L, T, -1), v.reshape(L, T, -1)], -1)
    np.testing.assert_allclose(found, y, rtol=1e-3, atol=1e-3)


def test_the_quantiser_table_is_max_s():
    """What the best uniform steps leave of a Gaussian, by integration."""
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    for bits in range(1, len(LEFT)):
        left = lambda step, n=2**bits: float(
            density
            @ np.square((np.clip(np.floor(x / step + n / 2), 0, n - 1) - (n - 1) / 2) * step - x)
        )
        best = min(left(width / 2**bits) for width in np.geomspace(2.5, 9, 100))
        assert best == pytest.approx(LEFT[bits], rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=48,
        ),
        ModelConfig(
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
        ),
    ],
    ids=["quickstart", "56M"],
)
@pytest.mark.parametrize("kind, most", [("int8", 0.55), ("int4", 0.30), ("pca2", 0.14)])
def test_bytes_of_a_short_document(config, kind, most):
    """Against bfloat16 keys and values without any header: scales, token ids, header and checksums
    included."""
    from fake_model import fake_model, packed

    from grit_jax.rag.record_format import RecordIdentity, encode_record

    rng = np.random.default_rng(0)
    shape = lambda n: (config.num_hidden_layers, n, config.num_key_value_heads, config.head_dim)
    make = lambda n: Document(
        np.arange(n) % 2048, *(rng.standard_normal(shape(n)).astype(np.float32) for _ in "kv")
    )
    codec, document = calibrate(kind, [make(40).record]), make(110).record
    identity = RecordIdentity.of(fake_model("f" * 32), compression_of(kind, codec))
    size = len(encode_record(packed(document, codec), identity))
    assert size <= most * 2 * 2 * np.prod(shape(110))


@pytest.mark.parametrize("kind", CODECS)
def test_a_calibration_survives(kind):
    codec = calibrate(kind, [SAMPLE.record])
    compression = compression_of(kind, codec)
    assert kind_of(compression) == kind and compression.startswith(f"{kind}-1-")
    again = codec_from_bytes(to_bytes(codec), compression, "here")
    for mine, theirs in zip(
        jax.tree.leaves(codec.pack(kv(OTHER))), jax.tree.leaves(again.pack(kv(OTHER))), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert compression_of(kind, again) == compression
    # The same sample in pieces gives the same; another one does not.
    parts = [
        Document(SAMPLE.tokens[a], SAMPLE.k[:, a], SAMPLE.v[:, a]).record
        for a in (slice(0, 300), slice(300, T))
    ]
    assert compression_of(kind, calibrate(kind, parts)) == compression
    assert compression_of(kind, calibrate(kind, [OTHER.record])) != compression
    with pytest.raises(GritError, match="here: the calibration"):
        codec_from_bytes(to_bytes(calibrate(kind, [OTHER.record])), compression, "here")


@pytest.mark.parametrize("kind", CODECS)
def test_extremes(kind):
    """Constant channels, zeros, one token, sizes of a bfloat16 model: finite, and near."""
    codec = calibrate(
        kind,
        [
            Document(
                np.arange(64),
                np.zeros((L, 64, K, H), np.float32),
                np.ones((L, 64, K, H), np.float32),
            ).record
        ],
    )
    zeros = np.zeros((L, 1, K, H), np.float32)
    found = codec.expand(codec.pack(kv(Document(np.arange(1), zeros, zeros + 1))))
    np.testing.assert_allclose(found.k, 0, atol=1e-5)
    np.testing.assert_allclose(found.v, 1, atol=0.02)
    huge = Document(SAMPLE.tokens, SAMPLE.k * 1e8, SAMPLE.v * 1e8)
    found = calibrate(kind, [huge.record])
    out = found.expand(found.pack(kv(huge)))
    assert np.isfinite(out.k).all() and loss(tokens_first(out)[1], huge.v) < 0.3


def test_an_odd_head_is_told():
    for kind in ("int4", "pca2"):
        odd = Document(np.arange(9), *np.ones((2, L, 9, K, 3), np.float32))
        with pytest.raises(GritError, match=f"--kv {kind}: 2 heads of 3 dimensions.*int8"):
            calibrate(kind, [odd.record])
    assert sample_tokens("pca2", ModelConfig(num_key_value_heads=8, head_dim=128)) == 32 * 2048


@pytest.mark.parametrize("kind", ["int8", "int4", "pca2"])
def test_a_layer_by_itself_is_that_of_the_whole_expansion(kind):
    codec = calibrate(kind, [SAMPLE.record])
    packed = codec.pack(kv(OTHER))
    whole = codec.expand(packed)
    for layer in range(len(whole.k)):
        arrays = {name: array[layer] for name, array in packed.items()}
        assert all(array.shape[1 + codec.token_axes[name]] == 300 for name, array in arrays.items())
        found = codec.expand_layer(arrays, jnp.asarray(layer))
        np.testing.assert_allclose(found.k, whole.k[layer], atol=1e-6)
        np.testing.assert_allclose(found.v, whole.v[layer], atol=1e-6)
