"""int8 and int4: a code for each number, keys by channel, values by token and head (KIVI, arXiv
2402.02750).

The range of a key channel is much the same in all documents, so it is calibrated on a sample.
Values have no such channels, so the range of each token and head is stored with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.types import KV

# Fractions of a sample that may stay outside a range at each end: clipping a few outliers makes the
# steps finer for all other numbers. The fewer the levels, the more is worth clipping.
CUT_OFF = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.18, 0.22, 0.26)
# From 8 bits on, a range is widened by an eighth at each end instead, for numbers beyond the
# sample.
ROOMY, ROOM = 8, 1 / 8
SMALLEST_STEP = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Scalar:
    """A number is `low + step * code`.

    Attributes:
      bits: of a code, 8 or 4.
      low, step: of the key channels.
    """

    low: Float[Array, "L K H"]
    step: Float[Array, "L K H"]
    bits: int = dataclasses.field(metadata={"static": True})

    # A layer's arrays are k [K H T], v [K T H] and v_range [K T 2]; in int4, H/2 for H.
    token_axes: ClassVar[Mapping[str, int]] = {"v_range": 1, "k": 2, "v": 1}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Scalar:
        """The codec of a calibration."""
        return cls(arrays["low"], arrays["step"], int(arrays["bits"]))

    def arrays(self) -> dict[str, Array]:
        """The calibration."""
        return {"low": self.low, "step": self.step, "bits": jnp.asarray(self.bits, jnp.int32)}

    def pack(self, kv: KV) -> dict[str, Array]:
        """Codes of keys and values, and low and step of the values."""
        k, v = kv.k.astype(jnp.float32), kv.v.astype(jnp.float32)
        least, most = v.min(-1, keepdims=True), v.max(-1, keepdims=True)
        # Stored with eight bits of precision; rounded outwards, so that the range stays covered.
        low = (least - jnp.abs(least) / 128).astype(jnp.bfloat16)
        step = ((most - low.astype(jnp.float32)) * (1 + 1 / 128) / self._most).astype(jnp.bfloat16)
        scaled = (v - low.astype(jnp.float32)) / jnp.maximum(
            step.astype(jnp.float32), SMALLEST_STEP
        )
        k_low, k_step = self._of_channels()
        return {
            "v_range": jnp.concatenate([low, step], -1),
            "k": self._codes((k - k_low) / k_step, axis=-2),
            "v": self._codes(scaled, axis=-1),
        }

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, approximately."""
        k_low, k_step = self._of_channels()
        k = k_low + k_step * self._numbers(arrays["k"], axis=-2)
        return KV(k, self._values(arrays))

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer."""
        v = self._values(arrays)
        low, step = (a[layer][:, :, None] for a in (self.low, self.step))
        if self.bits == 8:
            return KV(low + step * arrays["k"].astype(jnp.float32), v)
        codes, half = arrays["k"], arrays["k"].shape[2]
        # Joined last, so that XLA drops the join where the caller splits the halves again.
        first = low[:, :half] + step[:, :half] * (codes & 15).astype(jnp.float32)
        second = low[:, half:] + step[:, half:] * (codes >> 4).astype(jnp.float32)
        return KV(jnp.concatenate([first, second], axis=2), v)

    @property
    def _most(self) -> int:
        return 2**self.bits - 1

    def _of_channels(self) -> tuple[Float[Array, "L 1 K H 1"], Float[Array, "L 1 K H 1"]]:
        """Low and step of the key channels, for keys of all layers."""
        return self.low[:, None, ..., None], self.step[:, None, ..., None]

    def _values(self, arrays: dict[str, Array]) -> Array:
        ranges = arrays["v_range"].astype(jnp.float32)
        return ranges[..., :1] + ranges[..., 1:] * self._numbers(arrays["v"], axis=-1)

    def _codes(self, scaled: Array, axis: int) -> Array:
        """Codes of numbers whose head dimension is `axis`; in int4 a byte holds two, one of each
        half of the head dimension."""
        codes = jnp.clip(jnp.round(scaled), 0, self._most).astype(jnp.uint8)
        if self.bits == 8:
            return codes
        first, second = jnp.split(codes, 2, axis)
        return first | second << 4

    def _numbers(self, codes: Array, axis: int) -> Array:
        if self.bits == 4:
            codes = jnp.concatenate([codes & 15, codes >> 4], axis)
        return codes.astype(jnp.float32)


def calibrate_scalar(bits: int, sample: Iterable[KV]) -> Scalar:
    """The ranges of key channels that lose least on a sample, given layer by layer (`[N K H]`)."""
    lows, steps = [], []
    for kv in sample:
        N, K, H = kv.k.shape
        low, step = best_ranges(np.asarray(kv.k).reshape(N, -1), np.full(K * H, bits))
        lows.append(low.reshape(K, H))
        steps.append(step.reshape(K, H))
    return Scalar(
        jnp.asarray(np.stack(lows), jnp.float32), jnp.asarray(np.stack(steps), jnp.float32), bits
    )


def best_ranges(sample: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and step of the codes of each column of a sample `[N C]` that lose least; 0 and 1 where
    there are no bits."""
    ordered = np.sort(sample, axis=0)
    most = 2.0**bits - 1
    loss, low, step = np.full(len(bits), np.inf), np.zeros(len(bits)), np.ones(len(bits))
    for part in CUT_OFF:
        cut = int(part * len(sample))
        a, b = ordered[cut], ordered[len(sample) - 1 - cut]
        room = np.where(bits >= ROOMY, ROOM * (b - a), 0)
        a, b = a - room, b + room
        width = np.maximum((b - a) / np.maximum(most, 1), SMALLEST_STEP)
        error = np.square(
            np.clip(np.round((sample - a) / width), 0, most) * width + a - sample
        ).mean(0)
        better = (error < loss) & (bits > 0) & ((part == 0) | (bits < ROOMY))
        loss, low, step = (
            np.where(better, error, loss),
            np.where(better, a, low),
            np.where(better, width, step),
        )
    return low, step
