"""What stands before a prompt: records of documents and queries as they were stored, side by side
for one call.

A record is plain (`DocumentKV`) or packed by a codec (`PackedRecord`). A packed one travels to
the device as it is and is expanded inside the program that reads it, so that compression saves that
way, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from grit_jax.errors import GritError
from grit_jax.inference.row_packing import bucket
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.types import KV, DocumentKV

SHORTEST_PIECES = 128  # smallest bucket, in tokens
SHORTEST_BESIDE = 32  # of plain pieces beside packed ones: a query's record beside its documents'
# Where the pieces of a row stand: one after the other; or each from 0, as in the original, whose
# keys keep the positions of their own pass (`gritlm: rag/eval.py`). The prompt goes on after the
# number of cached tokens in both.
Positions: TypeAlias = Literal["running", "colliding"]

ALIGNMENT = (
    64  # bytes; XLA's CPU backend reads host arrays that begin at such an address where they lie
)


class Codec(Protocol):
    """A way to pack keys and values. A pytree: its calibration goes into compiled programs as an
    argument.

    Packed arrays that are named `k...` and `v...` have heads `[L B T K ...]`: a layer of them is
    stored and read as a cache holds keys and values (`token_axis`).
    """

    def pack(self, kv: KV) -> dict[str, Array]:
        """Arrays `[L B T ...]` by name, as they are to be stored."""
        ...

    def expand(self, arrays: dict[str, Array]) -> KV:
        """Nearly the same keys and values, in float32."""
        ...

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer, by head: `[B K H T]` and `[B K T H]`, from arrays that are stored
        so."""
        ...


@dataclasses.dataclass
class PackedRecord:
    """A text's keys (before rotary embedding) and values, packed: host arrays `[L T ...]` by
    name."""

    tokens: Int[np.ndarray, " T"]
    arrays: dict[str, np.ndarray]
    codec: Codec


class StreamedRecord(Protocol):
    """A record on its way: its tokens are known, its layers come one after the other."""

    tokens: Int[np.ndarray, " T"]
    codec: Codec | None  # None: plain

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """The arrays of a layer, waited for: `k` `[K H T]` and `v` `[K T H]`, or those of the
        codec.

        Raises:
          GritError: they cannot be used.
        """
        ...


def token_axis(name: str) -> int:
    """Where the tokens stand in a layer's array `name`: keys are by head with tokens last `[K X
    T]`, values `[K T X]`, and what belongs to both is `[T ...]`."""
    return {"k": 2, "v": 1}.get(name[0], 0)


KVRecord: TypeAlias = "DocumentKV | PackedRecord | StreamedRecord"


def is_packed(piece: KVRecord) -> bool:
    """Whether a codec packed it."""
    return not isinstance(piece, DocumentKV) and piece.codec is not None


@dataclasses.dataclass
class Loaded:
    """Pieces of `B` rows side by side, as they were stored, and where each token is to stand.

    The slots of the kinds of pieces (plain ones, those of each codec) follow one another. The order
    of slots means nothing: `positions` run from piece to piece in the order of reading (or collide,
    see `Positions`); `segments` are 1, or 0 in empty slots.
    """

    positions: Int[np.ndarray, "B P"]
    segments: Int[np.ndarray, "B P"]
    sides: list[_Side]

    @property
    def codecs(self) -> tuple[Codec | None, ...]:
        """What each kind is packed with."""
        return tuple(side.codec for side in self.sides)

    def layer(self, layer: int) -> tuple[dict[str, np.ndarray], ...]:
        """The arrays of each kind, rows first: `k` `[B K H P]` and `v` `[B K P H]` of plain pieces.

        Raises:
          GritError: a record that is on its way cannot be used.
        """
        return tuple(side.lay_out(layer) for side in self.sides)


def load_records(
    pieces: Sequence[Sequence[KVRecord]],
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
    sides: list[_Side] = []
    for r, row in enumerate(pieces):
        position = 0
        for number, piece in enumerate(row):
            codec = None if isinstance(piece, DocumentKV) else piece.codec
            side = next((side for side in sides if side.codec is codec), None)
            if side is None:
                sides.append(side := _Side(codec, [[] for _ in range(rows or len(pieces))], config))
            _check_shape(piece, config, f"prompt {r}, piece {number}")
            side.rows[r].append(_Placed(piece, position))
            position += len(piece.tokens) if positions == "running" else 0
    sides.sort(key=lambda side: side.codec is None)  # packed ones first: they are the documents
    for n, side in enumerate(sides):
        side.choose_slots(SHORTEST_BESIDE if n else SHORTEST_PIECES)
    join = lambda name: np.concatenate([getattr(side, name) for side in sides], axis=1)
    return Loaded(join("positions"), join("segments"), sides)


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A piece, and the position of its first token."""

    piece: KVRecord
    position: int


@dataclasses.dataclass
class _Side:
    """The pieces of one kind, row by row."""

    codec: Codec | None
    rows: list[list[_Placed]]
    config: ModelConfig

    def choose_slots(self, shortest: int) -> None:
        """As many slots as the longest row's pieces take, rounded up to a bucket."""
        lengths = [sum(len(placed.piece.tokens) for placed in row) for row in self.rows]
        P = bucket(max(lengths), shortest)
        self.positions, self.segments = np.zeros((2, len(self.rows), P), np.int32)
        for r, row in enumerate(self.rows):
            each = [placed.position + np.arange(len(placed.piece.tokens)) for placed in row]
            self.positions[r, : lengths[r]] = np.concatenate([*each, []])
            self.segments[r, : lengths[r]] = 1

    def lay_out(self, layer: int) -> dict[str, np.ndarray]:
        """The arrays of one layer."""
        B, P = self.positions.shape
        arrays: dict[str, np.ndarray] = {}
        for r, row in enumerate(self.rows):
            start = 0
            for placed in row:
                T = len(placed.piece.tokens)
                for name, array in _layer_of(placed.piece, layer).items():
                    axis = token_axis(name)
                    if name not in arrays:
                        dtype = (
                            array.dtype
                            if self.codec is not None
                            else np.dtype(jnp.dtype(self.config.dtype))
                        )
                        shape = (*array.shape[:axis], P, *array.shape[axis + 1 :])
                        arrays[name] = _aligned_zeros((B, *shape), dtype)
                    np.moveaxis(arrays[name][r], axis, 0)[start : start + T] = np.moveaxis(
                        array, axis, 0
                    )
                start += T
        return arrays


def _layer_of(piece: KVRecord, layer: int) -> dict[str, np.ndarray]:
    if isinstance(piece, DocumentKV):
        arrays = {"k": piece.k, "v": piece.v}
    elif isinstance(piece, PackedRecord):
        arrays = piece.arrays
    else:
        return piece.layer(layer)
    return {name: np.moveaxis(array[layer], 0, token_axis(name)) for name, array in arrays.items()}


def _check_shape(piece: KVRecord, config: ModelConfig, name: str) -> None:
    """That a whole record has the layers, tokens and heads that it must have; one on its way is its
    maker's."""
    expected: tuple[int, ...] = (config.num_hidden_layers, len(piece.tokens))
    if isinstance(piece, DocumentKV):
        expected = (*expected, config.num_key_value_heads, config.head_dim)
        arrays = [piece.k, piece.v]
    else:
        arrays = list(piece.arrays.values()) if isinstance(piece, PackedRecord) else []
    for array in arrays:
        found = array.shape[: len(expected)]
        if found != expected or (isinstance(piece, DocumentKV) and array.ndim != 4):
            raise GritError(
                f"{name}: its cache has shape {array.shape}, this model's would have {expected}; it"
                " was made by another model: encode it again"
            )


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that XLA's CPU backend can use without a copy of its own."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
