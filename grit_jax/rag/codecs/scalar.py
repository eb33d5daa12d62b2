"""int8 and int4: a code for each number, keys by channel, values by token and head (KIVI, arXiv
2402.02750).

Key channels differ in range and position and keep theirs from document to document, so those come
from a sample; values have no such channels, and each token and head brings a range of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.types import KV

# Parts of a sample that may stay outside a range at each end: where a few outliers are cut off, the
# steps for all the others are finer. The fewer the levels, the more is worth cutting.
CUT_OFF = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.18, 0.22, 0.26)
ROOMY, ROOM = (
    8,
    1 / 8,
)  # with so many bits a range has room on each side instead, for what the sample did not have
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
        # Kept with eight bits of precision, and not narrower for that.
        low = (least - jnp.abs(least) / 128).astype(jnp.bfloat16)
        step = ((most - low.astype(jnp.float32)) * (1 + 1 / 128) / self._most).astype(jnp.bfloat16)
        scaled = (v - low.astype(jnp.float32)) / jnp.maximum(
            step.astype(jnp.float32), SMALLEST_STEP
        )
        return {
            "v_range": jnp.concatenate([low, step], -1),
            "k": self._codes((k - self.low[:, None, None]) / self.step[:, None, None]),
            "v": self._codes(scaled),
        }

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, nearly."""
        ranges = arrays["v_range"].astype(jnp.float32)
        k = self.low[:, None, None] + self.step[:, None, None] * self._numbers(arrays["k"])
        return KV(k, ranges[..., :1] + ranges[..., 1:] * self._numbers(arrays["v"]))

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer by head, from arrays that lie so."""
        ranges = arrays["v_range"].astype(jnp.float32)
        v = ranges[..., :1] + ranges[..., 1:] * self._numbers(arrays["v"])
        low, step = (a[layer][:, :, None] for a in (self.low, self.step))
        if self.bits == 8:
            return KV(low + step * arrays["k"].astype(jnp.float32), v)
        codes, half = arrays["k"], arrays["k"].shape[2]
        # Joined last: whoever takes the halves apart again then never joins them.
        first = low[:, :half] + step[:, :half] * (codes & 15).astype(jnp.float32)
        second = low[:, half:] + step[:, half:] * (codes >> 4).astype(jnp.float32)
        return KV(jnp.concatenate([first, second], axis=2), v)

    @property
    def _most(self) -> int:
        return 2**self.bits - 1

    def _codes(self, scaled: Array) -> Array:
        codes = jnp.clip(jnp.round(scaled), 0, self._most).astype(jnp.uint8)
        half = (
            codes.shape[-1] // 2
        )  # a byte of int4: a channel of the first half and one of the second
        return codes if self.bits == 8 else codes[..., :half] | codes[..., half:] << 4

    def _numbers(self, codes: Array) -> Array:
        whole = codes if self.bits == 8 else jnp.concatenate([codes & 15, codes >> 4], -1)
        return whole.astype(jnp.float32)


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
        found = np.square(
            np.clip(np.round((sample - a) / width), 0, most) * width + a - sample
        ).mean(0)
        better = (found < loss) & (bits > 0) & ((part == 0) | (bits < ROOMY))
        loss, low, step = (
            np.where(better, found, loss),
            np.where(better, a, low),
            np.where(better, width, step),
        )
    return low, step
