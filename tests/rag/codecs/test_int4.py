"""int4: keys on the axes of their head, what a byte holds, and what that gains."""

from __future__ import annotations

import numpy as np
from codec_samples import OTHER, SAMPLE, H, K, L, T, kv, through

from grit_jax.rag.codecs.codecs import calibrate
from grit_jax.rag.codecs.ranges import best_ranges


def test_axes_bits_and_bytes_of_keys():
    """Uncorrelated projections, four bits a number in every head, and what a byte holds, bit by
    bit."""
    codec = calibrate("int4", [SAMPLE.record])
    bits, axes, mean = (np.asarray(array) for array in (codec.bits, codec.axes, codec.mean))
    assert (np.diff(bits, axis=-1) <= 0).all()  # most bits where the variance is
    assert (bits[..., ::8].sum(-1) == 4 * H // 8).all()
    assert (axes[..., H:] == 0).all()  # 12 axes fill two bytes in part
    packed = np.asarray(codec.pack(kv(SAMPLE))["k"])[:, 0]
    assert packed.shape == (L, K, H // 2, T) and packed.dtype == np.uint8
    k, _ = through("int4", SAMPLE)
    for layer in range(L):
        for head in range(K):
            x = SAMPLE.k[layer, :, head]
            projected = (x - mean[layer, head]) @ axes[layer, head]
            np.testing.assert_allclose(np.corrcoef(projected[:, :8].T), np.eye(8), atol=1e-3)
            low, step, width = (
                np.asarray(array)[layer, head] for array in (codec.low, codec.step, codec.bits)
            )
            codes = np.clip(np.rint((projected - low) / step), 0, 2.0**width - 1).astype(int)
            stored, byte = np.zeros_like(codes), 0
            for group in range(len(width) // 8):
                for order in range(width[8 * group]):
                    found = packed[layer, head, byte, :, None] >> np.arange(8) & 1
                    stored[:, 8 * group : 8 * group + 8] |= found.astype(int) << order
                    byte += 1
            assert byte == H // 2
            assert (stored != codes).mean() < 1e-3  # halves may round either way
            values = np.where(width > 0, low + stored * step, 0)
            expected = mean[layer, head] + values @ axes[layer, head].T
            np.testing.assert_allclose(k[layer, :, head], expected, rtol=1e-3, atol=1e-3)


def test_axes_lose_less_than_channels():
    """Codes of four bits for each channel, over the range that loses least, lose more than three
    times as much as codes of as many bits on the axes of the head."""
    low, step = best_ranges(SAMPLE.k.reshape(L * T, K * H), np.full(K * H, 4))
    shape = (1, 1, K, H)
    low, step = low.reshape(shape), step.reshape(shape)
    channels = np.clip(np.rint((OTHER.k - low) / step), 0, 15) * step + low
    lost = lambda found: np.square(found - OTHER.k).sum()
    assert lost(through("int4")[0]) < lost(channels) / 3
