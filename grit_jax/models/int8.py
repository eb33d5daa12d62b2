"""Weights in 8 bits for inference: the product reads the codes, and its result is scaled.

A matrix has one scale for each output, and the embedding table one for each word, which serves the
lookup and the logits of a model without a head of its own. `x @ (codes * scales)` is computed as
`(x @ codes) * scales`: no plain copy of a weight is made, and a decoded token reads half of what it
reads in bfloat16.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int8

from grit_jax.models.kernels import platform
from grit_jax.models.lora import MATRICES
from grit_jax.models.quantise import Axes, Int8Weight, Quantised

# The weights that are quantised; norms, biases, routers and projections are not.
INT8_WEIGHTS = (*MATRICES, "embed", "head")
LEVELS = 127
# XLA for CPU first converts a whole matrix of codes. For a few rows, converting is most of the
# work, so it is done in blocks of this many numbers, which stay in the processor's cache: a layer
# of 1024 x 4096 takes a sixth of the time of float32 (2 cores of an AMD EPYC, one to sixteen rows).
BLOCK_NUMBERS = 1 << 20
MOST_BLOCK_ROWS = 64  # from here on the product itself is most of the work
WIDEST_ACCUMULATOR = 8192  # outputs that are summed over blocks of inputs
HOST_BLOCK = 1 << 22  # numbers that a thread quantises at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Int8Table(Quantised):
    """An embedding table, `codes * scales`: symmetric, one scale for each row."""

    codes: Int8[Array, "V D"]
    scales: Float32[Array, "V 1"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dequantise(self, dtype: jnp.dtype) -> Float[Array, "V D"]:
        return (self.codes.astype(jnp.float32) * self.scales).astype(dtype)

    def axes(self, axes: Axes) -> Int8Table:
        return Int8Table(axes, (axes[0], None))

    def lookup(self, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        """Rows of the table."""
        rows = self.codes[tokens].astype(jnp.float32) * self.scales[tokens]
        return rows.astype(dtype)


def in_blocks(x: jax.Array) -> bool:
    """Whether the product of `x` `[..., D]` with codes is computed by `blocked_product`: of a few
    rows, on one CPU device."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    return alone and platform() == "cpu" and math.prod(x.shape[:-1]) <= MOST_BLOCK_ROWS


def blocked_product(
    x: Float[Array, "... D"], codes: Int8[Array, "D F"], *, transposed: bool = False
) -> Float32[Array, "... F"]:
    """`x @ codes` in float32, converting a block of the codes at a time.

    Args:
      transposed: the codes are `[F, D]`.
    """
    flat = x.reshape(-1, x.shape[-1])
    D, F = codes.shape[::-1] if transposed else codes.shape
    if not transposed and F <= WIDEST_ACCUMULATOR:
        out = _over_inputs(flat, codes, max(1, BLOCK_NUMBERS // F))
    else:
        out = _over_outputs(flat, codes, max(1, BLOCK_NUMBERS // D), 0 if transposed else 1)
    return out.reshape(*x.shape[:-1], F)


def _over_inputs(
    x: Float[Array, "n D"], codes: Int8[Array, "D F"], size: int
) -> Float[Array, "n F"]:
    D = codes.shape[0]
    part = lambda a, start, axis, size: jax.lax.dynamic_slice_in_dim(a, start, size, axis)

    def add(start: jax.Array | int, size: int) -> jax.Array:
        block = part(codes, start, 0, size).astype(x.dtype)
        return jnp.matmul(part(x, start, 1, size), block, preferred_element_type=jnp.float32)

    size = min(size, D)
    total = add(0, size)
    if D // size > 1:
        step = lambda i, total: total + add(i * size, size)
        total = jax.lax.fori_loop(1, D // size, step, total)
    if rest := D % size:
        total += add(D - rest, rest)
    return total


def _over_outputs(
    x: Float[Array, "n D"], codes: Int8[Array, "*any"], size: int, axis: int
) -> Float[Array, "n F"]:
    F = codes.shape[axis]
    size = min(size, F)

    def outputs(start: jax.Array | int, size: int) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(codes, start, size, axis).astype(x.dtype)
        return jax.lax.dot_general(
            x, block, (((1,), (1 - axis,)), ((), ())), preferred_element_type=jnp.float32
        )

    if size == F:
        return outputs(0, size)
    out = jax.lax.map(lambda i: outputs(i * size, size), jnp.arange(F // size))
    out = jnp.moveaxis(out, 0, 1).reshape(len(x), -1)
    rest = F % size
    return jnp.concatenate([out, outputs(F - rest, rest)], axis=1) if rest else out


def scale_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Of a quantised weight's scales: one for each output, or for each row of the table."""
    *leading, inputs, outputs = shape
    return (inputs, 1) if name == "embed" else (*leading, 1, outputs)


def abstract_int8(name: str, shape: Sequence[int]) -> Int8Weight | Int8Table:
    """The shapes and dtypes of a quantised weight, for programs and sizes without arrays."""
    codes = jax.ShapeDtypeStruct(tuple(shape), jnp.int8)
    scales = jax.ShapeDtypeStruct(scale_shape(name, shape), jnp.float32)
    return (Int8Table if name == "embed" else Int8Weight)(codes, scales)


class Int8Builder:
    """Quantises a weight on the host, tensor by tensor, as they are read from a file.

    Args:
      name, shape: of the weight.
    """

    def __init__(self, name: str, shape: Sequence[int]):
        self._table = name == "embed"
        self._codes = np.empty(shape, np.int8)
        self._scales = np.empty(scale_shape(name, shape), np.float32)

    def add(self, index: tuple[int, ...], rows: Float[np.ndarray, "F D"]) -> None:
        """Takes in the tensor at an index of the weight, an output (or a word) a row."""
        codes, scales = quantise_rows(rows)
        self._codes[index] = codes if self._table else codes.T
        self._scales[index] = scales if self._table else scales.T

    def weight(self) -> Int8Weight | Int8Table:
        """The quantised weight, in NumPy arrays."""
        return (Int8Table if self._table else Int8Weight)(self._codes, self._scales)


def quantise_rows(
    rows: Float[np.ndarray, "F D"],
) -> tuple[Int8[np.ndarray, "F D"], Float32[np.ndarray, "F 1"]]:
    """The nearest codes of each row, and its scale. A row of zeros has scale 1.

    >>> codes, scales = quantise_rows(np.array([[2.54, -1.0], [0.0, 0.0]], np.float32))
    >>> codes.tolist()
    [[127, -50], [0, 0]]
    """
    F, D = rows.shape
    codes, scales = np.empty((F, D), np.int8), np.empty((F, 1), np.float32)
    size = max(1, HOST_BLOCK // max(D, 1))

    def quantise(start: int) -> None:
        part = slice(start, start + size)
        values = rows[part].astype(np.float32)
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(LEVELS)
        # A row that is not finite keeps a scale that says so: the first result finds it.
        scales[part] = np.where(scale == 0, np.float32(1), scale)
        with np.errstate(invalid="ignore"):
            codes[part] = np.rint(values / scales[part]).astype(np.int8)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases the lock
        list(pool.map(quantise, range(0, F, size)))
    return codes, scales
