"""Values in codes of a range that is kept for each token and head.

Unlike those of keys, the channels of values have similar ranges, while tokens differ (KIVI, arXiv
2402.02750): a calibrated range would cut off the largest tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, UInt8

from grit_jax.rag.codecs.ranges import SMALLEST_STEP


def pack_values(
    v: Float[Array, "L B K T H"], bits: int
) -> tuple[BFloat16[Array, "L B K T 2"], UInt8[Array, "L B K T n"]]:
    """Low and step of each token and head, and codes of 8 or 4 bits.

    In 4 bits a byte holds two codes, one of each half of the channels: n = H / 2.
    """
    most = 2**bits - 1
    least, greatest = v.min(-1, keepdims=True), v.max(-1, keepdims=True)
    # Stored with eight bits of precision; rounded outwards, so that the range stays covered.
    low = (least - jnp.abs(least) / 128).astype(jnp.bfloat16)
    step = ((greatest - low.astype(jnp.float32)) * (1 + 1 / 128) / most).astype(jnp.bfloat16)
    scaled = (v - low.astype(jnp.float32)) / jnp.maximum(step.astype(jnp.float32), SMALLEST_STEP)
    codes = jnp.clip(jnp.round(scaled), 0, most).astype(jnp.uint8)
    if bits == 4:
        first, second = jnp.split(codes, 2, -1)
        codes = first | second << 4
    return jnp.concatenate([low, step], -1), codes


def expand_values(
    ranges: BFloat16[Array, "*B T 2"], codes: UInt8[Array, "*B T n"], bits: int
) -> Float[Array, "*B T H"]:
    """The values again, approximately."""
    if bits == 4:
        codes = jnp.concatenate([codes & 15, codes >> 4], -1)
    ranges = ranges.astype(jnp.float32)
    return ranges[..., :1] + ranges[..., 1:] * codes.astype(jnp.float32)
