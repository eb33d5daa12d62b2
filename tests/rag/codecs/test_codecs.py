"""What all codecs promise: how little is lost, how few bytes, and calibrations that last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_samples import OTHER, SAMPLE, Document, H, K, L, T, kv, through, tokens_first

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.rag.codecs.codecs import (
    KINDS,
    VERSIONS,
    calibrate,
    codec_from_bytes,
    compression_of,
    kind_of,
    sample_tokens,
    to_bytes,
)

CODECS = [kind for kind in KINDS if kind != "native"]


def loss(found: np.ndarray, array: np.ndarray) -> float:
    """Part of the variance that is lost."""
    return float(
        np.square(found - array).sum() / np.square(array - array.mean(1, keepdims=True)).sum()
    )


def test_axes_lose_less_with_fewer_bits():
    lost = {
        kind: [loss(a, b) for a, b in zip(through(kind), (OTHER.k, OTHER.v))] for kind in CODECS
    }
    assert max(lost["int8"]) < 1e-3 and max(lost["int4"]) < 0.01
    assert sum(lost["pca2"]) < sum(lost["int4"])


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
    assert kind_of(compression) == kind and compression.startswith(f"{kind}-{VERSIONS[kind]}-")
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


def test_records_of_an_earlier_version_are_refused():
    data = to_bytes(calibrate("int4", [SAMPLE.record]))
    for compression in ("int4-1-0123456789abcdef", "int5-1-0123456789abcdef"):
        with pytest.raises(GritError, match=f"here: compression '{compression}' is unknown"):
            codec_from_bytes(data, compression, "here")


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
