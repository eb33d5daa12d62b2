"""int8: a code for each number, keys by channel, values by token and head (KIVI, arXiv 2402.02750).

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

from grit_jax.rag.codecs.ranges import best_ranges
from grit_jax.rag.codecs.values import expand_values, pack_values
from grit_jax.types import KV

BITS = 8
MOST = 2**BITS - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Int8:
    """A number is `low + step * code`.

    Attributes:
      low, step: of the key channels.
    """

    low: Float[Array, "L K H"]
    step: Float[Array, "L K H"]

    # A layer's arrays are k [K H T], v [K T H] and v_range [K T 2].
    token_axes: ClassVar[Mapping[str, int]] = {"v_range": 1, "k": 2, "v": 1}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Int8:
        """The codec of a calibration."""
        return cls(arrays["low"], arrays["step"])

    def arrays(self) -> dict[str, Array]:
        """The calibration."""
        return {"low": self.low, "step": self.step, "bits": jnp.asarray(BITS, jnp.int32)}

    def pack(self, kv: KV) -> dict[str, Array]:
        """Codes of keys and values, and low and step of the values."""
        low, step = (a[:, None, ..., None] for a in (self.low, self.step))  # L 1 K H 1
        k = jnp.clip(jnp.round((kv.k.astype(jnp.float32) - low) / step), 0, MOST)
        ranges, v = pack_values(kv.v.astype(jnp.float32), BITS)
        return {"v_range": ranges, "k": k.astype(jnp.uint8), "v": v}

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, approximately."""
        low, step = (a[:, None, ..., None] for a in (self.low, self.step))
        k = low + step * arrays["k"].astype(jnp.float32)
        return KV(k, expand_values(arrays["v_range"], arrays["v"], BITS))

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer."""
        low, step = (a[layer][:, :, None] for a in (self.low, self.step))
        k = low + step * arrays["k"].astype(jnp.float32)
        return KV(k, expand_values(arrays["v_range"], arrays["v"], BITS))


def calibrate_int8(sample: Iterable[KV]) -> Int8:
    """The ranges of key channels that lose least on a sample, given layer by layer (`[N K H]`)."""
    lows, steps = [], []
    for kv in sample:
        N, K, H = kv.k.shape
        low, step = best_ranges(np.asarray(kv.k).reshape(N, -1), np.full(K * H, BITS))
        lows.append(low.reshape(K, H))
        steps.append(step.reshape(K, H))
    return Int8(jnp.asarray(np.stack(lows), jnp.float32), jnp.asarray(np.stack(steps), jnp.float32))
