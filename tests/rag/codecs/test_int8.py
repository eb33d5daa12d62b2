"""int8: key codes by NumPy's arithmetic, by channel, with room beyond the sample."""

from __future__ import annotations

import numpy as np
from codec_samples import OTHER, SAMPLE, kv, through

from grit_jax.rag.codecs.codecs import calibrate


def test_codes_are_the_nearest():
    codec = calibrate("int8", [SAMPLE.record])
    low, step = np.asarray(codec.low)[:, None], np.asarray(codec.step)[:, None]
    codes = np.asarray(codec.pack(kv(OTHER))["k"])[:, 0].transpose(0, 3, 1, 2)  # L T K H
    expected = np.clip(np.rint((OTHER.k - low) / step), 0, 255)
    assert (np.abs(codes - expected) > 0).mean() < 1e-3  # halves may round either way
    np.testing.assert_allclose(through("int8")[0], low + step * codes, rtol=1e-5, atol=1e-5)


def test_key_ranges_are_by_channel_with_room():
    """One range for all channels would lose many times as much; what the sample did not have is not
    cut off."""
    k, _ = through("int8")
    step = (SAMPLE.k.max() - SAMPLE.k.min()) / 255
    one = np.rint((OTHER.k - SAMPLE.k.min()) / step) * step + SAMPLE.k.min()
    each = np.square(OTHER.k - OTHER.k.mean(1, keepdims=True)).sum(1)
    relative = lambda found: np.mean(np.square(found - OTHER.k).sum(1) / each)
    assert relative(k) < 0.1 * relative(one)
    low, high = SAMPLE.k.min(1, keepdims=True), SAMPLE.k.max(1, keepdims=True)
    beyond = (OTHER.k < low) | (OTHER.k > high)
    room = (high - low) / 8
    far = (OTHER.k < low - room) | (OTHER.k > high + room)
    assert beyond.any()
    error = np.abs(k - OTHER.k) / (high - low)
    assert error[beyond & ~far].max() < 1 / 255
