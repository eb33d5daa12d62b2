"""What stands before a prompt: records of documents and queries as they were stored, side by side for one call.

A record is plain (`DocumentKV`) or packed by a codec (`PackedDocument`). A packed one travels to the device as it is
and is expanded inside the program that reads it, so that compression saves that way, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from grit_jax.inference.plan import bucket
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.types import KV, DocumentKV, GritError

SHORTEST_PIECES = 128  # smallest bucket, in tokens
SHORTEST_BESIDE = 32  # of plain pieces beside packed ones: a query's record beside its documents'
# Where the pieces of a row stand: one after the other; or each from 0, as in the original, whose keys keep the
# positions of their own pass (`gritlm: rag/eval.py`). The prompt goes on after the number of cached tokens in both.
Positions: TypeAlias = Literal["running", "colliding"]

ALIGNMENT = 64  # bytes; XLA's CPU backend reads host arrays that begin at such an address where they lie


class Codec(Protocol):
    """A way to pack keys and values. A pytree: its calibration goes into compiled programs as an argument."""

    def pack(self, kv: KV) -> dict[str, Array]:
        """Arrays `[L B T ...]` by name, as they are to be stored."""
        ...

    def expand(self, arrays: dict[str, Array]) -> KV:
        """Nearly the same keys and values, in float32."""
        ...


@dataclasses.dataclass
class PackedDocument:
    """A text's keys (before rotary embedding) and values, packed: host arrays `[L T ...]` by name."""

    tokens: Int[np.ndarray, " T"]
    arrays: dict[str, np.ndarray]
    codec: Codec


Piece: TypeAlias = "DocumentKV | PackedDocument"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Packed:
    """Packed pieces of `B` rows side by side: arrays `[L B P ...]` by name."""

    arrays: dict[str, Array]
    codec: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Loaded:
    """Pieces of `B` rows side by side, as they were stored, and where each token is to stand.

    The slots of `parts` follow one another; each part holds the pieces of one kind. The order of slots means nothing:
    `positions` run from piece to piece in the order of reading (or collide, see `Positions`); `segments` are 1, or 0 in
    empty slots.
    """

    parts: tuple[KV | Packed, ...]
    positions: Int[Array, "B P"]
    segments: Int[Array, "B P"]

    def kv(self, dtype: jnp.dtype) -> KV:
        """Keys (before rotary embedding) and values of all slots."""
        plain = [part if isinstance(part, KV) else part.codec.expand(part.arrays) for part in self.parts]
        join = lambda *arrays: jnp.concatenate([array.astype(dtype) for array in arrays], axis=2)
        return jax.tree.map(join, *plain)


def load_pieces(
    pieces: Sequence[Sequence[Piece]],
    config: ModelConfig,
    rows: int | None = None,
    positions: Positions = "running",
) -> Loaded:
    """Records of each row side by side in host arrays, in shapes from buckets.

    Args:
      rows: of the result, at least `len(pieces)`.

    Raises:
      GritError: a record of another model's shape, or a model whose documents cannot be cached.
    """
    check_records(config)
    B = rows or len(pieces)
    found: list[_Side] = []
    for r, row in enumerate(pieces):
        position = 0
        for number, piece in enumerate(row):
            codec = None if isinstance(piece, DocumentKV) else piece.codec
            side = next((side for side in found if side.codec is codec), None)
            if side is None:
                found.append(side := _Side(codec, [[] for _ in range(B)]))
            _check_shape(piece, config, f"prompt {r}, piece {number}")
            side.rows[r].append((position, piece))
            position += len(piece.tokens) if positions == "running" else 0
    found.sort(key=lambda side: side.codec is None)  # packed ones first: they are the documents
    sides = [side.lay_out(config, SHORTEST_BESIDE if n else SHORTEST_PIECES) for n, side in enumerate(found)]
    join = lambda name: np.concatenate([getattr(side, name) for side in sides], axis=1)
    return Loaded(tuple(side.parts[0] for side in sides), join("positions"), join("segments"))  # type: ignore[arg-type]


@dataclasses.dataclass
class _Side:
    """The pieces of one kind: of each row, their first positions and themselves."""

    codec: Codec | None
    rows: list[list[tuple[int, Piece]]]

    def lay_out(self, config: ModelConfig, shortest: int) -> Loaded:
        """Host arrays as long as the longest row's pieces, rounded up to a bucket."""
        B = len(self.rows)
        P = bucket(max(sum(len(piece.tokens) for _, piece in row) for row in self.rows), shortest)
        example = _arrays(next(piece for row in self.rows for _, piece in row))
        dtype = lambda array: array.dtype if self.codec is not None else np.dtype(jnp.dtype(config.dtype))
        arrays = {
            name: _aligned_zeros((array.shape[0], B, P, *array.shape[2:]), dtype(array))
            for name, array in example.items()
        }
        positions, segments = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
        for r, row in enumerate(self.rows):
            a = 0
            for position, piece in row:
                b = a + len(piece.tokens)
                for name, array in _arrays(piece).items():
                    arrays[name][:, r, a:b] = array
                positions[r, a:b] = np.arange(position, position + b - a)
                a = b
            segments[r, :a] = 1
        part = Packed(arrays, self.codec) if self.codec is not None else KV(arrays["k"], arrays["v"])
        return Loaded((part,), positions, segments)


def _arrays(piece: Piece) -> dict[str, np.ndarray]:
    return {"k": piece.k, "v": piece.v} if isinstance(piece, DocumentKV) else piece.arrays


def _check_shape(piece: Piece, config: ModelConfig, name: str) -> None:
    """That a record has the layers, tokens and heads that it must have."""
    expected: tuple[int, ...] = (config.num_hidden_layers, len(piece.tokens))
    if isinstance(piece, DocumentKV):
        expected = (*expected, config.num_key_value_heads, config.head_dim)
    for array in _arrays(piece).values():
        found = array.shape[: len(expected)]
        if found != expected or (isinstance(piece, DocumentKV) and array.ndim != 4):
            raise GritError(
                f"{name}: its cache has shape {array.shape}, this model's would have {expected}; it was made by "
                "another model: encode it again"
            )


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that XLA's CPU backend can use without a copy of its own."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
