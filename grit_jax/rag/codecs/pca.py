"""pca2: transform coding of keys and values at two bits a number (after KVTC, arXiv 2511.01815).

A layer's keys and values of a token, side by side, are projected on the principal axes of a sample.
Most of the variance lies on few axes, so the first axes get several bits and the last ones none.
Keys and values are projected together, because both are linear maps of the same hidden state and
share much of their variance.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.rag.codecs.scalar import best_ranges
from grit_jax.types import KV

BITS = 2  # a number, on average
AXES = 8  # consecutive axes with the same number of bits: one bit of each of their codes is a byte
KEY_WEIGHT = 2.0  # an error in a key weighs this many times that in a value: answers change more
SMALLEST_SCALE = 1e-6
# The fraction of a Gaussian's variance that uniform codes of 0, 1, 2, ... bits lose (J. Max,
# Quantizing for minimum distortion, 1960).
LEFT = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000304, 0.0000869)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Transform:
    """Each stored bit adds a vector: a layer's keys and values are `base + bits @ vectors`.

    Attributes:
      heads: `K` and `H`.
      mean, scale: of a layer's keys and values side by side.
      axes: that they are projected on after subtracting the mean and dividing by the scale.
      low, step, bits: of the codes on each axis.
      group, order: which eight axes a byte belongs to, and which bit of their codes it holds.
    """

    mean: Float[Array, "L D"]
    scale: Float[Array, "L D"]
    axes: Float[Array, "L D R"]
    low: Float[Array, "L R"]
    step: Float[Array, "L R"]
    bits: Int[Array, "L R"]
    group: Int[Array, "L n"]
    order: Int[Array, "L n"]
    base: Float[Array, "L D"]
    vectors: Float[Array, "L 8n D"]
    heads: tuple[int, int] = dataclasses.field(metadata={"static": True})

    token_axes: ClassVar[Mapping[str, int]] = {"bits": 0}  # a layer's array is [T n]

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Transform:
        """The codec of a calibration."""
        a = {name: np.asarray(array) for name, array in arrays.items()}
        back = a["scale"][:, :, None] * a["axes"]  # from projections to keys and values
        base = a["mean"] + np.einsum("ldr,lr->ld", back, np.where(a["bits"] > 0, a["low"], 0))
        widths = a["bits"][:, ::AXES]
        places = [
            [(g, order) for g, width in enumerate(layer) for order in range(width)]
            for layer in widths.tolist()
        ]
        group, order = np.moveaxis(np.asarray(places, np.int32), -1, 0)
        # Of a byte's eight bits: the vector of the bit's axis times the value of the bit.
        axis = group[..., None] * AXES + np.arange(AXES)  # L n 8
        value = np.take_along_axis(a["step"][:, None], axis, -1) * 2.0 ** order[..., None]
        vectors = np.stack(
            [layer.T[axes.reshape(-1)] for layer, axes in zip(back, axis, strict=True)]
        )
        vectors *= value.reshape(len(back), -1, 1)
        kept = {name: array for name, array in arrays.items() if name != "heads"}
        expanding = {
            name: jnp.asarray(array, jnp.float32)
            for name, array in (("base", base), ("vectors", vectors))
        }
        return cls(
            **kept,
            **expanding,
            group=jnp.asarray(group),
            order=jnp.asarray(order),
            heads=tuple(a["heads"].tolist()),
        )

    def arrays(self) -> dict[str, Array]:
        """The calibration."""
        names = ("mean", "scale", "axes", "low", "step", "bits")
        return {name: getattr(self, name) for name in names} | {
            "heads": jnp.asarray(self.heads, jnp.int32)
        }

    def pack(self, kv: KV) -> dict[str, Array]:
        """The codes' bits."""
        L, B, K, H, T = kv.k.shape
        tokens_first = (kv.k.transpose(0, 1, 4, 2, 3), kv.v.swapaxes(2, 3))
        x = jnp.concatenate(
            [a.reshape(L, B, T, K * H).astype(jnp.float32) for a in tokens_first], -1
        )
        each = lambda a: a[:, None, None]  # a layer's, for all rows and tokens
        projected = jnp.einsum(
            "lbtd,ldr->lbtr", (x - each(self.mean)) / each(self.scale), self.axes
        )
        codes = jnp.round((projected - each(self.low)) / each(self.step))
        codes = jnp.clip(codes, 0, 2.0 ** each(self.bits) - 1).astype(jnp.int32)
        codes = jnp.take_along_axis(
            codes.reshape(L, B, T, -1, AXES), each(self.group)[..., None], axis=3
        )
        bits = codes >> each(self.order)[..., None] & 1
        return {"bits": (bits << jnp.arange(AXES)).sum(-1).astype(jnp.uint8)}

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, approximately."""
        packed = arrays["bits"]
        L, B, T, n = packed.shape
        bits = packed[..., None] >> jnp.arange(AXES, dtype=jnp.uint8) & 1
        x = jnp.einsum(
            "lbtn,lnd->lbtd", bits.reshape(L, B, T, n * AXES).astype(jnp.float32), self.vectors
        )
        x = (x + self.base[:, None, None]).reshape(L, B, T, 2, *self.heads)
        return KV(x[..., 0, :, :].transpose(0, 1, 3, 4, 2), x[..., 1, :, :].swapaxes(2, 3))

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer."""
        codec = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer), self)
        kv = codec.expand({name: array[None] for name, array in arrays.items()})
        return KV(kv.k[0], kv.v[0])


def calibrate_transform(sample: Iterable[KV]) -> Transform:
    """The codec of a sample that is given layer by layer (`[N K H]`); every layer gets as many
    bits."""
    layers = []
    for kv in sample:
        N, K, H = kv.k.shape
        k, v = (np.asarray(part).reshape(N, -1) for part in (kv.k, kv.v))
        # Scaled to the same size, apart from the weight of the keys.
        sizes = (k.std() / KEY_WEIGHT, v.std())
        scale = np.concatenate([np.full(K * H, max(size, SMALLEST_SCALE)) for size in sizes])
        x = np.concatenate([k, v], 1) / scale
        mean, axes, variances = _principal_axes(x)
        count = BITS * len(scale) // AXES
        bits = np.repeat(_allocate(variances.reshape(-1, AXES).mean(1), count), AXES)
        low, step = best_ranges((x - mean) @ axes, bits)
        layers.append((mean * scale, scale, axes, low, step, bits))
    mean, scale, axes, low, step, bits = (np.stack(part) for part in zip(*layers, strict=True))
    used = int(bits.any(0).nonzero()[0].max()) + 1
    floats = {
        "mean": mean,
        "scale": scale,
        "axes": axes[..., :used],
        "low": low[:, :used],
        "step": step[:, :used],
    }
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in floats.items()}
    whole = {"bits": bits[:, :used], "heads": np.asarray((K, H))}
    return Transform.from_arrays(
        {**arrays, **{name: jnp.asarray(a, jnp.int32) for name, a in whole.items()}}
    )


def _principal_axes(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `[C]`, axes `[C C]` (columns) and the variance on each of a sample `[N C]`, largest
    first."""
    mean = sample.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.cov((sample - mean).T))
    return mean, axes[:, ::-1], np.maximum(variances[::-1], 0)


def _allocate(variances: np.ndarray, count: int) -> np.ndarray:
    """Bits for each variance, `count` in all: each goes where it reduces the error most."""
    bits = np.zeros(len(variances), np.int64)
    gain = lambda i: variances[i] * (LEFT[bits[i]] - LEFT[bits[i] + 1])
    heap = [(-gain(i), i) for i in range(len(variances))]
    for _ in range(count):
        _, i = heapq.heappop(heap)
        bits[i] += 1
        if bits[i] + 1 < len(LEFT):
            heapq.heappush(heap, (-gain(i), i))
    return bits
