"""int8 and int4: a code for each number, keys by channel, values by token and head (KIVI, arXiv 2402.02750).

Key channels differ in range and position and keep theirs from document to document, so those come from a sample;
values have no such channels, and each token and head brings a range of its own.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grit_jax.types import KV

# Parts of a sample that a channel's range may leave out at each end: where a few outliers are cut off, the steps for
# all the others are finer.
CUT_OFF = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
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
        scaled = (v - low.astype(jnp.float32)) / jnp.maximum(step.astype(jnp.float32), SMALLEST_STEP)
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

    @property
    def _most(self) -> int:
        return 2**self.bits - 1

    def _codes(self, scaled: Array) -> Array:
        codes = jnp.clip(jnp.round(scaled), 0, self._most).astype(jnp.uint8)
        half = codes.shape[-1] // 2  # a byte of int4: a channel of the first half and one of the second
        return codes if self.bits == 8 else codes[..., :half] | codes[..., half:] << 4

    def _numbers(self, codes: Array) -> Array:
        whole = codes if self.bits == 8 else jnp.concatenate([codes & 15, codes >> 4], -1)
        return whole.astype(jnp.float32)


def calibrate_scalar(bits: int, sample: KV) -> Scalar:
    """The ranges of key channels that lose least on a sample (`[L N K H]`)."""
    most = 2**bits - 1
    lows, steps = [], []
    for keys in np.asarray(sample.k, np.float32):
        ordered = np.sort(keys, axis=0)
        loss = np.full(keys.shape[1:], np.inf)
        low, step = np.zeros_like(loss), np.ones_like(loss)
        for part in CUT_OFF:
            cut = int(part * len(keys))
            a, b = ordered[cut], ordered[len(keys) - 1 - cut]
            width = np.maximum((b - a) / most, SMALLEST_STEP)
            found = np.square(np.clip(np.round((keys - a) / width), 0, most) * width + a - keys).mean(0)
            better = found < loss
            loss, low, step = np.where(better, found, loss), np.where(better, a, low), np.where(better, width, step)
        lows.append(low)
        steps.append(step)
    return Scalar(jnp.asarray(np.stack(lows), jnp.float32), jnp.asarray(np.stack(steps), jnp.float32), bits)
