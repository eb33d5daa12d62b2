"""int8 and int4: codes by NumPy's arithmetic, and ranges that lose little."""

from __future__ import annotations

import numpy as np
import pytest
from codec_samples import OTHER, SAMPLE, kv, through

from grit_jax.rag.codecs.codecs import calibrate
from grit_jax.rag.codecs.scalar import best_ranges


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


def test_best_ranges_by_trying_many():
    """No other range of a grid loses clearly less; a column without bits has codes of 0."""
    rng = np.random.default_rng(0)
    columns = np.stack(
        [rng.standard_normal(500), rng.standard_t(2, 500), rng.uniform(3, 4, 500)], 1
    )

    def loss(x, low, step, levels):
        return np.square(np.clip(np.rint((x - low) / step), 0, levels - 1) * step + low - x).mean()

    for bits in (1, 2, 4):
        low, step = best_ranges(columns, np.full(3, bits))
        for x, a, width in zip(columns.T, low, step, strict=True):
            ends = np.quantile(x, [0, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25])
            others = np.quantile(x, [1, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75])
            tried = [
                loss(x, begin, (end - begin) / (2**bits - 1), 2**bits)
                for begin in ends
                for end in others
            ]
            assert loss(x, a, width, 2**bits) < 1.25 * min(tried)
    low, step = best_ranges(columns, np.array([0, 4, 8]))
    assert (low[0], step[0]) == (0, 1)
    # Eight bits leave room for an eighth of the width on both sides.
    assert low[2] == pytest.approx(columns[:, 2].min() - np.ptp(columns[:, 2]) / 8)
    assert step[2] == pytest.approx(np.ptp(columns[:, 2]) * 1.25 / 255)
