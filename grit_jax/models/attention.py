"""The one attention function: who sees whom, and which kernel computes it.

A query sees the keys of its own segment (all of them when bidirectional, itself and the earlier
ones when causal, the later ones of its own block as well in prefix mode) and, beside them, the
cached keys of its segment. A sliding window bounds both by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models import kernels
from grit_jax.sharding import constrain, num_shards
from grit_jax.types import AttentionMode, Mode


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Keys:
    """Rotated keys, values, and where they stand; segment 0 is padding."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slots:
    """A layer of a cache (see `cache.KVCache`); segment 0 marks an empty slot."""

    k: Float[Array, "B K H S"]
    v: Float[Array, "B K S H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    k_scale: Float[Array, "B K H"] | None = None
    v_scale: Float[Array, "B K S"] | None = None


KeysOrSlots = TypeVar("KeysOrSlots", Keys, Slots)
BY_HEAD = ("rows", "kv_heads")


def attend(
    q: Float[Array, "B T N H"],
    own: Keys,
    *,
    mode: Mode,
    window: int | None = None,
    cached: Sequence[Slots] = (),
    blocks: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of `T` tokens to themselves and to cached keys.

    Where the mesh splits the tokens of a row, queries stay where they are and keys are gathered.

    Args:
      q: rotated queries; they share `own.positions` and `own.segments`.
      own: keys of the same tokens.
      mode: one mode for all rows, or blocks of `(mode, rows)` that follow one another and repeat
        over all rows.
      window: keys further than this from the query by position are not seen (`|i - j| < window`).
      cached: keys computed before; a query sees those with its own segment number.
      blocks: in prefix mode, query `i` sees key `j` of its segment if `j <= i` or `blocks[i] ==
        blocks[j] != 0`.
      scale: of the scores, None for `1/sqrt(H)`.
      softcap: bends the scores into `(-softcap, softcap)` before the softmax.

    Raises:
      ValueError: prefix mode without blocks; rows that the blocks do not divide.
    """
    if num_shards("tokens", q.shape[1]) > 1:
        own, cached = (
            _whole_rows(own, ("rows", None, "kv_heads")),
            [_whole_rows(slots, BY_HEAD) for slots in cached],
        )
    options = {
        "window": window,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "softcap": softcap,
    }
    if isinstance(mode, AttentionMode):
        return _attend_one_mode(q, own, cached, mode, blocks, options)
    period = sum(rows for _, rows in mode)
    if q.shape[0] % period:
        raise ValueError(f"{q.shape[0]} rows cannot be split in blocks of {period} rows")
    outputs, start = [], 0
    # Folded to [repeats, period, ...]: devices whose rows are whole repeats cut up their own and
    # send nothing.
    fold = lambda x: x.reshape(-1, period, *x.shape[1:])
    for block_mode, rows in mode:
        pick = lambda x: fold(x)[:, start : start + rows].reshape(-1, *x.shape[1:])  # noqa: B023 - used at once
        take = lambda tree: jax.tree.map(pick, tree)  # noqa: B023
        out = _attend_one_mode(
            take(q), take(own), take(tuple(cached)), block_mode, take(blocks), options
        )
        outputs.append(out.reshape(-1, rows, *out.shape[1:]))
        start += rows
    return jnp.concatenate(outputs, axis=1).reshape(q.shape)


def _whole_rows(keys: KeysOrSlots, axes: tuple[str | None, ...]) -> KeysOrSlots:
    """Keys gathered over the devices that a row's tokens are split over: each of its queries may
    see all of them.

    `axes` are those of keys and values; positions and segments have rows alone.
    """
    gather = lambda x: constrain(
        x, ("rows", None) if x.ndim == 2 else (*axes, None, None)[: x.ndim]
    )
    return jax.tree.map(gather, keys)


def _attend_one_mode(
    q: jax.Array,
    own: Keys,
    cached: Sequence[Slots],
    mode: AttentionMode,
    blocks: jax.Array | None,
    options: dict[str, Any],
) -> jax.Array:
    prefix = mode is AttentionMode.PREFIX
    if prefix and blocks is None:
        raise ValueError("prefix attention needs `blocks`, which say what sees its later tokens")
    causal = mode is not AttentionMode.BIDIRECTIONAL
    if not cached and not prefix:  # no fused kernel knows blocks
        fused = kernels.fused_attention(q, own.k, own.v, own.segments, causal=causal, **options)
        if fused is not None:
            return fused
    blocks = blocks if prefix else None
    queries = kernels.Queries(q, own.positions, own.segments, blocks)
    parts = [kernels.Part(own.k, own.v, own.positions, own.segments, blocks, causal=causal)]
    parts += [
        kernels.Part(
            slots.k,
            slots.v,
            slots.positions,
            slots.segments,
            by_head=True,
            k_scale=slots.k_scale,
            v_scale=slots.v_scale,
        )
        for slots in cached
    ]
    symmetric_window = mode is not AttentionMode.CAUSAL
    return checkpoint_name(
        kernels.blocked_attention(queries, parts, symmetric_window=symmetric_window, **options),
        kernels.ATTENTION_NAME,
    )


def visible(
    query_positions: Int[Array, "B T"],
    query_segments: Int[Array, "B T"],
    keys: Keys,
    *,
    causal: bool,
    window: int | None,
    blocks: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T S"]:
    """The mask of own keys as an array, for tests and for reading; the kernels build it block by
    block."""
    return kernels.part_mask(
        kernels.Queries(keys.k, query_positions, query_segments, blocks),
        kernels.Part(keys.k, keys.v, keys.positions, keys.segments, blocks, causal=causal),
        window=window,
        symmetric_window=not causal or blocks is not None,
    )
