"""Values by token and head: nothing is cut off, and the error is bounded by the range."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from codec_samples import OTHER, kv, through

from grit_jax.rag.codecs.values import expand_values, pack_values


@pytest.mark.parametrize("bits", [8, 4])
def test_no_error_is_larger_than_half_a_step_of_the_kept_range(bits):
    packed_range, codes = pack_values(jnp.asarray(kv(OTHER).v), bits)
    assert codes.nbytes == OTHER.v.size * bits // 8
    ranges = np.asarray(packed_range)[:, 0].swapaxes(1, 2).astype(np.float32)  # L T K 2
    low, step = ranges[..., :1], ranges[..., 1:]
    assert (low <= OTHER.v).all() and (
        OTHER.v <= (low + step * (2**bits - 1)) * (1 + 1e-6) + 1e-6
    ).all()
    found = np.asarray(expand_values(packed_range, codes, bits))[:, 0].swapaxes(1, 2)
    assert (np.abs(found - OTHER.v) <= 0.501 * step).all()
    np.testing.assert_allclose(through(f"int{bits}")[1], found, atol=1e-6)
    spread = OTHER.v.max(-1, keepdims=True) - OTHER.v.min(-1, keepdims=True)
    assert (
        step <= 1.06 * spread / (2**bits - 1) + np.abs(OTHER.v).max() / 100 / (2**bits - 1)
    ).all()
