"""pca2: transform coding of keys and values at two bits a number (after KVTC, arXiv 2511.01815).

A layer's keys and values of a token, side by side, are projected on the principal axes of a sample.
Most of the variance lies on few axes, so the first axes get several bits and the last ones none.
Keys and values are projected together, because both are linear maps of the same hidden state and
share much of their variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.rag.codecs.axes import AXES, AxisCodes, BitLayout, codes_to_bytes
from grit_jax.types import KV

BITS = 2  # a number, on average
KEY_WEIGHT = 2.0  # an error in a key weighs this many times that in a value: answers change more
SMALLEST_SCALE = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Transform:
    """Each stored bit adds a vector: a layer's keys and values are `base + bits @ vectors`.

    Attributes:
      heads: `K` and `H`.
      mean, scale: of a layer's keys and values side by side.
      axes: that they are projected on after subtracting the mean and dividing by the scale.
      low, step, bits: of the codes on each axis.
      layout: what each stored bit stands for; made of the others.
    """

    mean: Float[Array, "L D"]
    scale: Float[Array, "L D"]
    axes: Float[Array, "L D R"]
    low: Float[Array, "L R"]
    step: Float[Array, "L R"]
    bits: Int[Array, "L R"]
    layout: BitLayout
    heads: tuple[int, int] = dataclasses.field(metadata={"static": True})

    token_axes: ClassVar[Mapping[str, int]] = {"bits": 0}  # a layer's array is [T n]

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Transform:
        """The codec of a calibration."""
        a = {name: np.asarray(array) for name, array in arrays.items()}
        back = a["scale"][:, :, None] * a["axes"]  # from projections to keys and values
        layout = BitLayout.of(a["mean"], back, a["low"], a["step"], a["bits"])
        heads = tuple(a.pop("heads").tolist())
        kept = {name: jnp.asarray(array) for name, array in a.items()}
        return cls(**kept, layout=layout, heads=heads)

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
        group, order = each(self.layout.group), each(self.layout.order)
        return {"bits": codes_to_bytes(codes, group, order)}

    def expand(self, arrays: dict[str, Array]) -> KV:
        """The keys and values again, approximately."""
        packed = arrays["bits"]
        L, B, T, n = packed.shape
        bits = packed[..., None] >> jnp.arange(AXES, dtype=jnp.uint8) & 1
        x = jnp.einsum(
            "lbtn,lnd->lbtd",
            bits.reshape(L, B, T, n * AXES).astype(jnp.float32),
            self.layout.vectors,
        )
        x = (x + self.layout.base[:, None, None]).reshape(L, B, T, 2, *self.heads)
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
        codes = AxisCodes.of_sample(np.concatenate([k, v], 1) / scale, BITS * len(scale) // AXES)
        layers.append((codes.mean * scale, scale, codes.axes, codes.low, codes.step, codes.bits))
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
