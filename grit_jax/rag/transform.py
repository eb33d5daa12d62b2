"""pca2 and pca1: transform coding of keys and values at 2 and 1 bits a number (after KVTC, arXiv 2511.01815).

A layer's keys and values of a token, side by side, are projected on the principal axes of a sample. Most of their
variance lies on few axes; the bits go where they save most of it, several to the first axes and none to the last ones.
The axes of keys and values together say much more than those of each: both are views of the same hidden state.
"""

from __future__ import annotations

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.types import KV

AXES = 8  # share a number of bits: one bit of each of their codes is a byte
# Uniform quantisers of a Gaussian of unit variance with 2^bits levels: the best step, and the variance that is left
# (J. Max, Quantizing for minimum distortion, 1960).
STEPS = (0.0, 1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
LEFT = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000304, 0.0000869)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Transform:
    """Each stored bit adds a vector: a layer's keys and values are `base + bits @ vectors`.

    Attributes:
      heads: `K` and `H`.
      mean, scale: of a layer's keys and values side by side.
      axes: what they are projected on when the mean is taken off and the scale divided out.
      step, bits: of the codes on each axis; a code of 0 stands for `-(2^bits - 1) / 2` steps.
      group, order: which eight axes a byte belongs to, and which bit of their codes it holds.
    """

    mean: Float[Array, "L D"]
    scale: Float[Array, "L D"]
    axes: Float[Array, "L D R"]
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
        low = -(2.0 ** a["bits"] - 1) / 2 * a["step"]
        base = a["mean"] + np.einsum("ldr,lr->ld", back, np.where(a["bits"] > 0, low, 0))
        widths = a["bits"][:, ::AXES]
        places = [[(g, order) for g, width in enumerate(layer) for order in range(width)] for layer in widths.tolist()]
        group, order = np.moveaxis(np.asarray(places, np.int32), -1, 0)
        # Of a byte's eight bits: the axes' vectors times what the bit is worth.
        axis = group[..., None] * AXES + np.arange(AXES)  # L n 8
        worth = np.take_along_axis(a["step"][:, None], axis, -1) * 2.0 ** order[..., None]
        vectors = np.stack([layer.T[where.reshape(-1)] for layer, where in zip(back, axis, strict=True)])
        vectors *= worth.reshape(len(back), -1, 1)
        kept = {name: jnp.asarray(a[name]) for name in ("mean", "scale", "axes", "step", "bits")}
        expanding = {name: jnp.asarray(array, jnp.float32) for name, array in (("base", base), ("vectors", vectors))}
        return cls(
            **kept, **expanding, group=jnp.asarray(group), order=jnp.asarray(order), heads=tuple(a["heads"].tolist())
        )

    def arrays(self) -> dict[str, Array]:
        """The calibration."""
        names = ("mean", "scale", "axes", "step", "bits")
        return {name: getattr(self, name) for name in names} | {"heads": jnp.asarray(self.heads, jnp.int32)}

    def pack(self, kv: KV) -> dict[str, Array]:
        """The codes' bits."""
        L, B, T, K, H = kv.k.shape
        x = jnp.concatenate([a.reshape(L, B, T, K * H).astype(jnp.float32) for a in (kv.k, kv.v)], -1)
        each = lambda a: a[:, None, None]  # a layer's, for all rows and tokens
        found = jnp.einsum("lbtd,ldr->lbtr", (x - each(self.mean)) / each(self.scale), self.axes)
        most = 2.0 ** each(self.bits) - 1
        codes = jnp.clip(jnp.round(found / each(self.step) + most / 2), 0, most).astype(jnp.int32)
        codes = jnp.take_along_axis(codes.reshape(L, B, T, -1, AXES), each(self.group)[..., None], axis=3)
        bits = codes >> each(self.order)[..., None] & 1
        return {"bits": (bits << jnp.arange(AXES)).sum(-1).astype(jnp.uint8)}

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, nearly."""
        packed = arrays["bits"]
        L, B, P, n = packed.shape
        bits = packed[..., None] >> jnp.arange(AXES, dtype=jnp.uint8) & 1
        x = jnp.einsum("lbpn,lnd->lbpd", bits.reshape(L, B, P, n * AXES).astype(jnp.float32), self.vectors)
        x = (x + self.base[:, None, None]).reshape(L, B, P, 2, *self.heads)
        return KV(x[..., 0, :, :], x[..., 1, :, :])


def calibrate_transform(bits_per_number: int, sample: KV) -> Transform:
    """The principal axes of a sample (`[L N K H]`), and the bits of each: as many in every layer."""
    L, N, K, H = sample.k.shape
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("mean", "scale", "axes", "step", "bits")}
    for k, v in zip(sample.k, sample.v, strict=True):
        k, v = np.asarray(k, np.float64).reshape(N, -1), np.asarray(v, np.float64).reshape(N, -1)
        # Keys and values count the same, whatever their size.
        scale = np.concatenate([np.full(a.shape[1], max(a.std(), 1e-6)) for a in (k, v)])
        x = np.concatenate([k, v], 1) / scale
        variance, axes = np.linalg.eigh(np.cov(x.T))
        variance, axes = np.maximum(variance[::-1], 1e-12), axes[:, ::-1]
        bits = np.repeat(_allocate(variance.reshape(-1, AXES).mean(1), bits_per_number * len(variance) // AXES), AXES)
        found["mean"].append(x.mean(0) * scale)
        found["scale"].append(scale)
        found["axes"].append(axes)
        found["step"].append(np.asarray(STEPS)[bits] * np.sqrt(variance) + (bits == 0))
        found["bits"].append(bits)
    used = max(int((bits > 0).nonzero()[0].max()) + 1 for bits in found["bits"])
    arrays = {
        name: np.stack(values).astype(np.int32 if name == "bits" else np.float32) for name, values in found.items()
    }
    for name in ("axes", "step", "bits"):
        arrays[name] = arrays[name][..., :used]
    return Transform.from_arrays({**arrays, "heads": np.asarray((K, H), np.int32)})  # type: ignore[dict-item]


def _allocate(variances: np.ndarray, count: int) -> np.ndarray:
    """Bits for each group of axes, `count` in all, one after the other to where it takes most variance away."""
    bits = np.zeros(len(variances), np.int64)
    gain = lambda g: variances[g] * (LEFT[bits[g]] - LEFT[bits[g] + 1])
    heap = [(-gain(g), g) for g in range(len(variances))]
    for _ in range(count):
        _, g = heapq.heappop(heap)
        bits[g] += 1
        if bits[g] + 1 < len(LEFT):
            heapq.heappush(heap, (-gain(g), g))
    return bits
