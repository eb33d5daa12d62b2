"""pca2: principal axes, bits where the variance is, and what a byte holds."""

from __future__ import annotations

import numpy as np
from codec_samples import SAMPLE, H, K, L, T, kv, through

from grit_jax.rag.codecs.codecs import calibrate


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
