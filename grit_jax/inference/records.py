"""Records of documents and queries, laid side by side as the cache that prompts are read over.

A record (`KVRecord`) is plain (`DocumentKV`) or packed by a codec (`PackedRecord`). A packed one is
copied to the device as it is and expanded inside the program that reads it, so that compression
saves bandwidth as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from grit_jax.errors import GritError
from grit_jax.inference.row_packing import bucket
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.types import KV, DocumentKV

SHORTEST_RECORDS = 128  # smallest bucket of the records of a row, in tokens
# Smallest bucket of plain records beside packed ones: a query's record beside its documents'. One
# size for all queries of the default length, since each is a program for each size of documents.
SHORTEST_BESIDE = 512
# Rotary positions of the records of a row. "running": one record after the other. "colliding": each
# from 0, as in the original, whose keys keep the positions of their own pass (`gritlm:
# rag/eval.py`). In both, the prompt continues at the number of cached tokens.
Positions: TypeAlias = Literal["running", "colliding"]

# Bytes. XLA's CPU backend uses a host array that begins at such an address without copying it.
ALIGNMENT = 64


class Codec(Protocol):
    """A way to pack keys and values.

    A pytree: its calibration is an argument of the compiled programs.

    Attributes:
      token_axes: for each packed array by name, the axis of the tokens in one layer of one text (so
        2 for an array `[L B K H T]`, whose layer is `[K H T]`).
    """

    @property
    def token_axes(self) -> Mapping[str, int]: ...

    def pack(self, kv: KV) -> dict[str, Array]:
        """Arrays `[L B ...]` by name, in the order in which they are stored."""
        ...

    def expand(self, arrays: dict[str, Array]) -> KV:
        """Nearly the same keys and values, in float32."""
        ...

    def expand_layer(self, arrays: dict[str, Array], layer: Int[Array, ""]) -> KV:
        """Those of one layer, `[B K H T]` and `[B K T H]`, from that layer of the arrays."""
        ...


class KVRecord(Protocol):
    """A text's keys (before rotary embedding) and values, read layer by layer.

    It is in memory (`DocumentKV`, `PackedRecord`), or being loaded from a store
    (`rag.record_format.StreamedRecord`): then its tokens are known and its layers arrive one by
    one.

    Attributes:
      codec: that packed it; None: plain.
    """

    tokens: Int[np.ndarray, " T"]

    @property
    def codec(self) -> Codec | None: ...

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """The arrays of a layer: `k` `[K H T]` and `v` `[K T H]`, or those of the codec.

        Raises:
          GritError: they cannot be read.
        """
        ...


@dataclasses.dataclass
class PackedRecord:
    """A text's keys (before rotary embedding) and values, packed: host arrays `[L ...]` by name."""

    tokens: Int[np.ndarray, " T"]
    arrays: dict[str, np.ndarray]
    codec: Codec

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """The arrays of a layer."""
        return {name: array[layer] for name, array in self.arrays.items()}


PLAIN_TOKEN_AXES = {"k": 2, "v": 1}  # of keys [K H T] and values [K T H]


def token_axes(codec: Codec | None) -> Mapping[str, int]:
    """The axis of the tokens in each array of a layer, by name (see `Codec`)."""
    return PLAIN_TOKEN_AXES if codec is None else codec.token_axes


def token_span(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """An index of the tokens `start` to `stop` of an array whose axis `axis` they are."""
    return (*(slice(None),) * axis, slice(start, stop))


def is_finite(record: DocumentKV | PackedRecord) -> bool:
    """Whether all its numbers are; codes are integers, and say nothing."""
    floating = [a for a in record.arrays.values() if jnp.issubdtype(a.dtype, jnp.floating)]
    return all(np.isfinite(array).all() for array in floating)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerRecords:
    """One layer of the records of a batch that share a codec: arrays by name, rows first. Or all
    layers, before the rows."""

    arrays: dict[str, Array]
    codec: Codec | None

    def expand(self, layer: Int[Array, ""]) -> KV:
        """Keys `[B K H S]` and values `[B K S H]`."""
        if self.codec is None:
            return KV(self.arrays["k"], self.arrays["v"])
        return self.codec.expand_layer(self.arrays, layer)

    def expand_all(self) -> KV:
        """Keys `[L B K H S]` and values `[L B K S H]`, where the arrays are of all layers."""
        if self.codec is None:
            return KV(self.arrays["k"], self.arrays["v"])
        return self.codec.expand(self.arrays)


@dataclasses.dataclass
class RecordRows:
    """Records of `B` rows side by side, as they were stored, and the position of each token.

    Records are grouped by codec (plain ones are a group, too), and the slots of the groups follow
    one another. The order of slots has no meaning: `positions` run from record to record in the
    order of reading (or collide, see `Positions`); `segments` are 1, or 0 in empty slots.
    """

    positions: Int[np.ndarray, "B S"]
    segments: Int[np.ndarray, "B S"]
    groups: list[_Group]

    def layer(self, layer: int) -> tuple[LayerRecords, ...]:
        """One layer of each group, in host arrays.

        Raises:
          GritError: a streamed record cannot be used.
        """
        return tuple(LayerRecords(group.lay_out(layer), group.codec) for group in self.groups)


def load_records(
    records: Sequence[Sequence[KVRecord]],
    config: ModelConfig,
    rows: int | None = None,
    positions: Positions = "running",
) -> RecordRows:
    """Records of each row side by side in host arrays, in shapes from buckets.

    Args:
      rows: of the result, at least `len(records)`.

    Raises:
      GritError: a record of another model's shape, or a model whose documents cannot be cached.
    """
    check_records(config)
    groups: list[_Group] = []
    for r, row in enumerate(records):
        position = 0
        for number, record in enumerate(row):
            group = next((group for group in groups if group.codec is record.codec), None)
            if group is None:
                group = _Group(record.codec, [[] for _ in range(rows or len(records))], config)
                groups.append(group)
            check_record(record, config, f"prompt {r}, record {number}")
            group.rows[r].append(_PlacedRecord(record, position))
            position += len(record.tokens) if positions == "running" else 0
    groups.sort(key=lambda group: group.codec is None)  # packed ones first: they are the documents
    for n, group in enumerate(groups):
        group.choose_slots(SHORTEST_BESIDE if n else SHORTEST_RECORDS)
    join = lambda name: np.concatenate([getattr(group, name) for group in groups], axis=1)
    return RecordRows(join("positions"), join("segments"), groups)


@dataclasses.dataclass(frozen=True)
class _PlacedRecord:
    """A record, and the position of its first token."""

    record: KVRecord
    position: int


@dataclasses.dataclass
class _Group:
    """The records that share a codec, row by row."""

    codec: Codec | None
    rows: list[list[_PlacedRecord]]
    config: ModelConfig

    def choose_slots(self, shortest: int) -> None:
        """Sets positions and segments: slots for the longest row's records, rounded up to a
        bucket."""
        lengths = [sum(len(placed.record.tokens) for placed in row) for row in self.rows]
        S = bucket(max(lengths), shortest)
        self.positions, self.segments = np.zeros((2, len(self.rows), S), np.int32)
        for r, row in enumerate(self.rows):
            each = [placed.position + np.arange(len(placed.record.tokens)) for placed in row]
            self.positions[r, : lengths[r]] = np.concatenate([*each, []])
            self.segments[r, : lengths[r]] = 1

    def lay_out(self, layer: int) -> dict[str, np.ndarray]:
        """The arrays of one layer."""
        B, S = self.positions.shape
        axes, plain_dtype = token_axes(self.codec), np.dtype(jnp.dtype(self.config.dtype))
        arrays: dict[str, np.ndarray] = {}
        for r, row in enumerate(self.rows):
            start = 0
            for placed in row:
                stop = start + len(placed.record.tokens)
                for name, array in placed.record.layer(layer).items():
                    axis = axes[name]
                    if name not in arrays:
                        dtype = array.dtype if self.codec is not None else plain_dtype
                        shape = (*array.shape[:axis], S, *array.shape[axis + 1 :])
                        arrays[name] = _aligned_zeros((B, *shape), dtype)
                    arrays[name][r][token_span(axis, start, stop)] = array
                start = stop
        return arrays


def check_record(record: KVRecord, config: ModelConfig, name: str) -> None:
    """Checks layers, tokens and heads of a whole record. (Streamed records are checked when they
    are made.)

    Raises:
      GritError: it is a record of a model of another shape.
    """
    c, T = config, len(record.tokens)
    if isinstance(record, DocumentKV):
        heads = (c.num_hidden_layers, c.num_key_value_heads)
        shapes = [(record.k, (*heads, c.head_dim, T)), (record.v, (*heads, T, c.head_dim))]
        for array, expected in shapes:
            if array.shape != expected:
                raise _other_model(name, array, f"{expected}")
    elif isinstance(record, PackedRecord):
        axes = token_axes(record.codec)
        for key, array in record.arrays.items():
            if len(array) != c.num_hidden_layers or array.shape[1 + axes[key]] != T:
                raise _other_model(name, array, f"{c.num_hidden_layers} layers of {T} tokens")


def _other_model(name: str, array: np.ndarray, expected: str) -> GritError:
    return GritError(
        f"{name}: its cache has shape {array.shape}, this model's would have {expected}; it was"
        " made by another model: encode it again"
    )


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that XLA's CPU backend can use without a copy of its own."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
