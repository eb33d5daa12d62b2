"""Transform coding: principal axes of a sample, and how many bits the codes on each axis get.

Most of the variance lies on few axes, so the first axes get several bits and the last ones few or
none. A byte holds the same bit of the codes on eight consecutive axes (`AXES`), which have the same
number of bits. Each stored bit then adds a vector, so expansion is one product:
`base + bits @ vectors`.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from grit_jax.rag.codecs.ranges import best_ranges

AXES = 8  # consecutive axes with the same number of bits: one bit of each of their codes is a byte
# The fraction of a Gaussian's variance that uniform codes of 0, 1, 2, ... bits lose (J. Max,
# Quantizing for minimum distortion, 1960).
LEFT = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000304, 0.0000869)


@dataclasses.dataclass(frozen=True)
class AxisCodes:
    """The calibration of one transform.

    Attributes:
      mean: of the sample.
      axes: that numbers are projected on after subtracting the mean, largest variance first.
      low, step, bits: of the codes on each axis.
    """

    mean: Float[np.ndarray, " D"]
    axes: Float[np.ndarray, "D R"]
    low: Float[np.ndarray, " R"]
    step: Float[np.ndarray, " R"]
    bits: Int[np.ndarray, " R"]

    @classmethod
    def of_sample(cls, sample: Float[np.ndarray, "N D"], count: int) -> Self:
        """The transform of a sample, with `count` bytes a token.

        Where `AXES` does not divide D, the last axes are zero, so that R is the next multiple.
        """
        mean, axes, variances = principal_axes(sample)
        missing = -len(variances) % AXES
        variances, axes = np.pad(variances, (0, missing)), np.pad(axes, ((0, 0), (0, missing)))
        bits = np.repeat(allocate(variances.reshape(-1, AXES).mean(1), count), AXES)
        return cls(mean, axes, *best_ranges((sample - mean) @ axes, bits), bits)


def principal_axes(
    sample: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"], Float[np.ndarray, " D"]]:
    """Mean, axes (columns) and the variance on each, largest first."""
    mean = sample.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.cov((sample - mean).T))
    return mean, axes[:, ::-1], np.maximum(variances[::-1], 0)


def allocate(variances: Float[np.ndarray, " R"], count: int) -> Int[np.ndarray, " R"]:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class BitLayout:
    """Which bits the bytes of a token hold, for transforms that have as many bytes each.

    Attributes:
      group, order: which eight axes a byte belongs to, and which bit of their codes it holds.
      base, vectors: the number that codes of zero stand for, and what each bit adds to it.
    """

    group: Int[Array, "*B n"]
    order: Int[Array, "*B n"]
    base: Float[Array, "*B D"]
    vectors: Float[Array, "*B 8n D"]

    @classmethod
    def of(
        cls,
        mean: Float[np.ndarray, "*B D"],
        back: Float[np.ndarray, "*B D R"],
        low: Float[np.ndarray, "*B R"],
        step: Float[np.ndarray, "*B R"],
        bits: Int[np.ndarray, "*B R"],
    ) -> Self:
        """`back` is the map from projections to numbers."""
        base = mean + np.einsum("...dr,...r->...d", back, np.where(bits > 0, low, 0))
        widths = bits[..., ::AXES]
        places = [
            [(g, order) for g, width in enumerate(transform) for order in range(width)]
            for transform in widths.reshape(-1, widths.shape[-1]).tolist()
        ]
        group, order = (
            part.reshape(*widths.shape[:-1], -1)
            for part in np.moveaxis(np.asarray(places, np.int32), -1, 0)
        )
        # Of a byte's eight bits: the vector of the bit's axis times the value of the bit.
        axis = (group[..., None] * AXES + np.arange(AXES)).reshape(*group.shape[:-1], -1)  # 8n
        value = np.take_along_axis(step, axis, -1) * np.repeat(2.0**order, AXES, -1)
        vectors = np.take_along_axis(back.swapaxes(-1, -2), axis[..., None], -2) * value[..., None]
        return cls(
            jnp.asarray(group),
            jnp.asarray(order),
            jnp.asarray(base, jnp.float32),
            jnp.asarray(vectors, jnp.float32),
        )


def codes_to_bytes(
    codes: Int[Array, "*B R"], group: Int[Array, "*B n"], order: Int[Array, "*B n"]
) -> UInt8[Array, "*B n"]:
    """The bytes of codes on all axes; `group` and `order` are broadcast."""
    codes = codes.reshape(*codes.shape[:-1], -1, AXES)
    codes = jnp.take_along_axis(codes, group[..., None], axis=-2)
    bits = codes >> order[..., None] & 1
    return (bits << jnp.arange(AXES)).sum(-1).astype(jnp.uint8)
