"""Weights quantised to 8 or 4 bits: the frozen base model of LoRA adapters.

A quantised weight is a pytree that takes the place of the weight's array and keeps its leading
axes, so that `lax.scan` slices a layer off it as off an array and only that layer is dequantised.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, UInt8

Precision = Literal["int8", "int4"]
Axes: TypeAlias = "tuple[str | None, ...]"

# 4-bit weights that share a scale: consecutive inputs of one output (QLoRA, section 3).
BLOCK = 64
SCALE_GROUP = 256  # 4-bit scales that share a scale of their own (double quantisation)
# Quantiles of the normal distribution, normalised to [-1, 1], zero among them: QLoRA (arXiv
# 2305.14314), appendix E.
NF4_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Quantised:
    """Base class of quantised weights."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        raise NotImplementedError

    def dequantise(self, dtype: jnp.dtype) -> Float[Array, "... D F"]:
        """The weight, computed in float32 and cast to `dtype`."""
        raise NotImplementedError

    def axes(self, axes: Axes) -> Any:
        """Logical axes of the parts, given those of the weight's array."""
        raise NotImplementedError

    def __getitem__(self, place: Any) -> Float[Array, "D F"]:
        """The plain weight of a layer (and expert) in float32, to be written to disk; indexed like
        an array."""
        return _dequantise(jax.tree.map(lambda part: part[place], self))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Int8Weight(Quantised):
    """`codes * scales`: symmetric, one scale for each output."""

    codes: Int8[Array, "... D F"]
    scales: Float32[Array, "... 1 F"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dequantise(self, dtype: jnp.dtype) -> Float[Array, "... D F"]:
        return (self.codes.astype(jnp.float32) * self.scales).astype(dtype)

    def axes(self, axes: Axes) -> Int8Weight:
        return Int8Weight(axes, (*axes[:-2], None, axes[-1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class NF4Weight(Quantised):
    """4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314), 4.13 bits a weight.

    A weight is `NF4_CODES[code] * scale`, with one scale per block. Scales are stored in 8 bits as
    `mean + step * code`, with one step for `SCALE_GROUP` outputs. (QLoRA stores an 8-bit float.
    The scales of a matrix are close together, so that evenly spaced values are as good.)

    Attributes:
      codes: two in a byte: inputs `i` (high bits) and `i + 32` of a block, so that a block unpacks
        by one concatenation.
    """

    codes: UInt8[Array, "... D/64 32 F"]
    scales: Int8[Array, "... D/64 F"]
    steps: Float32[Array, "... D/64 F/256"]
    mean: Float32[Array, "... 1 1"]

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, blocks, half, outputs = self.codes.shape
        return (*leading, blocks * half * 2, outputs)

    def dequantise(self, dtype: jnp.dtype) -> Float[Array, "... D F"]:
        steps = jnp.repeat(self.steps, SCALE_GROUP, axis=-1)[..., : self.shape[-1]]
        scales = self.mean + steps * self.scales.astype(jnp.float32)
        values = jnp.concatenate(
            [_nf4_values(self.codes >> 4), _nf4_values(self.codes & 15)], axis=-2
        )
        return (values * scales[..., None, :]).reshape(self.shape).astype(dtype)

    def axes(self, axes: Axes) -> NF4Weight:
        *leading, inputs, outputs = axes
        return NF4Weight(
            (*leading, inputs, None, outputs),
            (*leading, inputs, outputs),
            (*leading, inputs, None),
            (*leading, None, None),
        )


def quantise(weight: Float[Array, "... D F"], precision: Precision) -> Quantised:
    """Quantises a weight to the nearest codes. Deterministic.

    Raises:
      ValueError: the inputs do not divide into 4-bit blocks.
    """
    weight = weight.astype(jnp.float32)
    *leading, inputs, outputs = weight.shape
    if precision == "int8":
        scales = _positive(jnp.abs(weight).max(axis=-2, keepdims=True) / 127)
        return Int8Weight(jnp.round(weight / scales).astype(jnp.int8), scales)
    if inputs % BLOCK:
        raise ValueError(f"{inputs} inputs do not divide into blocks of {BLOCK}")
    blocks = weight.reshape(*leading, inputs // BLOCK, BLOCK, outputs)
    largest = jnp.abs(blocks).max(axis=-2)
    normal = blocks / _positive(largest)[..., None, :]
    codes = jnp.zeros(normal.shape, jnp.uint8)
    for low, high in zip(NF4_CODES[:-1], NF4_CODES[1:], strict=True):
        codes += (normal > (low + high) / 2).astype(jnp.uint8)
    first, second = jnp.split(codes, 2, axis=-2)
    mean = largest.mean(axis=(-2, -1), keepdims=True)
    rest = jnp.pad(largest - mean, [(0, 0)] * (largest.ndim - 1) + [(0, -outputs % SCALE_GROUP)])
    groups = rest.reshape(*rest.shape[:-1], -1, SCALE_GROUP)
    steps = _positive(jnp.abs(groups).max(axis=-1) / 127)
    scales = (
        jnp.round(groups / steps[..., None]).astype(jnp.int8).reshape(rest.shape)[..., :outputs]
    )
    return NF4Weight((first << 4) | second, scales, steps, mean)


def storage_axes(weight: Any, axes: Axes) -> Any:
    """Logical axes of each array that a weight is stored in, given those of the plain weight."""
    return weight.axes(axes) if hasattr(weight, "axes") else axes


@jax.jit
def _dequantise(weight: Quantised) -> Float[Array, "... D F"]:
    return weight.dequantise(jnp.float32)


def _nf4_values(codes: UInt8[Array, "*any"]) -> Float32[Array, "*any"]:
    """Looks codes up by a tree of `where`: elementwise, so that every backend fuses it, unlike a
    gather."""

    def choose(first: int, count: int) -> jax.Array:
        if count == 1:
            return jnp.float32(NF4_CODES[first])
        half = count // 2
        return jnp.where((codes & half) > 0, choose(first + half, half), choose(first, half))

    return choose(0, len(NF4_CODES))


def _positive(scales: jax.Array) -> jax.Array:
    """Scales with 0 replaced by 1: where all weights are zero, any scale will do."""
    return jnp.where(scales > 0, scales, 1.0)
