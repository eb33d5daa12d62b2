"""pca2: transform coding of keys and values at two bits a number (after KVTC, arXiv 2511.01815).

A layer's keys and values of a token, side by side, are projected on the principal axes of a sample.
Most of their variance lies on few axes; the bits go where they save most of it, several to the
first axes and none to the last ones. The axes of keys and values together say much more than those
of each: both are views of the same hidden state.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.rag.codecs.scalar import best_ranges
from grit_jax.types import KV

BITS = 2  # a number, on average
AXES = 8  # share a number of bits: one bit of each of their codes is a byte
# an error in a key counts as one so many times as large in a value: answers change more with it
KEY_WEIGHT = 2.0
SMALLEST_SCALE = 1e-6
# What uniform codes of so many bits leave of the variance of a Gaussian (J. Max, Quantizing for
# minimum distortion, 1960): what a bit more is worth.
LEFT = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000304, 0.0000869)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Transform:
    """Each stored bit adds a vector: a layer's keys and values are `base + bits @ vectors`.

    Attributes:
      heads: `K` and `H`.
      mean, scale: of a layer's keys and values side by side.
      axes: what they are projected on when the mean is taken off and the scale divided out.
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
        # Of a byte's eight bits: the axes' vectors times what the bit is worth.
        axis = group[..., None] * AXES + np.arange(AXES)  # L n 8
        worth = np.take_along_axis(a["step"][:, None], axis, -1) * 2.0 ** order[..., None]
        vectors = np.stack(
            [layer.T[where.reshape(-1)] for layer, where in zip(back, axis, strict=True)]
        )
        vectors *= worth.reshape(len(back), -1, 1)
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
        L, B, T, K, H = kv.k.shape
        x = jnp.concatenate(
            [a.reshape(L, B, T, K * H).astype(jnp.float32) for a in (kv.k, kv.v)], -1
        )
        each = lambda a: a[:, None, None]  # a layer's, for all rows and tokens
        found = jnp.einsum("lbtd,ldr->lbtr", (x - each(self.mean)) / each(self.scale), self.axes)
        codes = jnp.round((found - each(self.low)) / each(self.step))
        codes = jnp.clip(codes, 0, 2.0 ** each(self.bits) - 1).astype(jnp.int32)
        codes = jnp.take_along_axis(
            codes.reshape(L, B, T, -1, AXES), each(self.group)[..., None], axis=3
        )
        bits = codes >> each(self.order)[..., None] & 1
        return {"bits": (bits << jnp.arange(AXES)).sum(-1).astype(jnp.uint8)}

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, nearly."""
        packed = arrays["bits"]
        L, B, P, n = packed.shape
        bits = packed[..., None] >> jnp.arange(AXES, dtype=jnp.uint8) & 1
        x = jnp.einsum(
            "lbpn,lnd->lbpd", bits.reshape(L, B, P, n * AXES).astype(jnp.float32), self.vectors
        )
        x = (x + self.base[:, None, None]).reshape(L, B, P, 2, *self.heads)
        return KV(x[..., 0, :, :], x[..., 1, :, :])

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer by head."""
        one = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer), self)
        kv = one.expand({name: array[None] for name, array in arrays.items()})
        return KV(kv.k[0].transpose(0, 2, 3, 1), kv.v[0].swapaxes(1, 2))


def calibrate_transform(sample: Iterable[KV]) -> Transform:
    """Principal axes of a sample, given layer by layer (`[N K H]`), and the bits of each, as many
    in every layer."""
    layers = []
    for kv in sample:
        N, K, H = kv.k.shape
        k, v = (np.asarray(part).reshape(N, -1) for part in (kv.k, kv.v))
        # Alike in size, but for the weight of the keys.
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
    """Bits for each variance, `count` in all, one after the other to where it takes most away."""
    bits = np.zeros(len(variances), np.int64)
    gain = lambda i: variances[i] * (LEFT[bits[i]] - LEFT[bits[i] + 1])
    heap = [(-gain(i), i) for i in range(len(variances))]
    for _ in range(count):
        _, i = heapq.heappop(heap)
        bits[i] += 1
        if bits[i] + 1 < len(LEFT):
            heapq.heappush(heap, (-gain(i), i))
    return bits
