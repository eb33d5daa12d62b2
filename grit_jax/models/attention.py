"""The one attention function: which keys a query sees, and which kernel computes it.

A query sees the keys of its own segment (all of them when bidirectional, itself and the earlier
ones when causal, the later ones of its own block as well in prefix mode) and, beside them, the
cached keys of its segment. A sliding window bounds both by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models import kernels
from grit_jax.models.cudnn import cudnn_attention
from grit_jax.models.kernels import KeyValues
from grit_jax.models.splash import splash_attention
from grit_jax.sharding import constrain, num_shards
from grit_jax.types import AttentionMode, Mode


def attend(
    q: Float[Array, "B T N H"],
    own: KeyValues,
    *,
    mode: Mode,
    window: int | None = None,
    cached: Sequence[KeyValues] = (),
    blocks: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of `T` tokens to themselves and to cached keys.

    The platform's fused kernel computes it where that takes the shapes (`splash`, `cudnn`), the
    blocked path elsewhere. Where the mesh splits the tokens of a row, queries stay where they are
    and keys are gathered.

    A text of which a key or a value is not finite gives NaN, at all of its tokens, and does not
    reach the texts beside it in the row: a kernel multiplies what a query does not see by zero, and
    zero times NaN is NaN, so the kernels get zeros in place of such numbers.

    Args:
      q: rotated queries; they share `own.positions` and `own.segments`.
      own: keys of the same tokens.
      mode: one mode for all rows, or blocks of `(mode, rows)` that follow one another and repeat
        over all rows.
      window: keys further than this from the query by position are not seen (`|i - j| < window`).
        Positions of a segment, own and cached together, are those of a text without gaps.
      cached: keys computed before, in a cache's axis order; a query sees those with its own segment
        number. Negative numbers mark tokens that were not finite (see `cache.insert`).
      blocks: in prefix mode, query `i` sees key `j` of its segment if `j <= i` or `blocks[i] ==
        blocks[j] != 0`.
      scale: of the scores, None for `1/sqrt(H)`.
      softcap: bends the scores into `(-softcap, softcap)` before the softmax.

    Raises:
      ValueError: prefix mode without blocks; rows that the blocks do not divide.
    """
    segments, marks = own.segments, [keys.segments for keys in cached]
    if q.shape[1] > 1:  # the only token of a row has no neighbour
        finite, own = finite_tokens(own.k, own.v), zeros_for_nonfinite(own)
        marks.append(jnp.where(finite, 0, -segments))
    if num_shards("tokens", q.shape[1]) > 1:
        own, cached = _whole_rows(own), [_whole_rows(keys) for keys in cached]
        marks = [constrain(x, ("rows", None)) for x in marks]
    options = {
        "window": window,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "softcap": softcap,
    }
    if isinstance(mode, AttentionMode):
        out = _attend_one_mode(q, own, cached, mode, blocks, options)
    else:
        out = _attend_by_mode(q, own, cached, mode, blocks, options)
    if not marks:
        return out
    # NaN plus a number is NaN and 0 plus a number that number; unlike a selection, the sum keeps
    # nothing for the backward pass.
    added = jnp.where(_is_marked(segments, marks), jnp.nan, 0.0).astype(out.dtype)
    return out + added[:, :, None, None]


def finite_tokens(k: Float[Array, "... K H"], v: Float[Array, "... K H"]) -> Bool[Array, ...]:
    """Whether a token's keys and values are finite numbers."""
    return (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=(-2, -1))


@jax.custom_jvp
def finite_or_zero(x: Float[Array, ...]) -> Float[Array, ...]:
    """`x` with 0 where it is not finite.

    The derivative is that of `x`: masking it would keep the condition for the backward pass, and a
    text that is not finite has no finite loss either way.
    """
    return jnp.where(jnp.isfinite(x), x, 0)


@finite_or_zero.defjvp
def _finite_or_zero_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return finite_or_zero(*primals), tangents[0]


def zeros_for_nonfinite(keys: KeyValues) -> KeyValues:
    """Keys and values with zeros where they are not finite numbers."""
    return dataclasses.replace(keys, k=finite_or_zero(keys.k), v=finite_or_zero(keys.v))


def _is_marked(
    segments: Int[Array, "B T"], marks: Sequence[Int[Array, "B S"]]
) -> Bool[Array, "B T"]:
    """Whether `-n` is among the marks of a row for a token of segment `n`."""
    seen = [(segments[:, :, None] == -mark[:, None, :]).any(axis=-1) for mark in marks]
    return jnp.stack(seen).any(axis=0) & (segments > 0)


def _whole_rows(keys: KeyValues) -> KeyValues:
    """Keys gathered over the devices that a row's tokens are split over: each of its queries may
    see all of them."""
    axes = ("rows", "kv_heads", None, None) if keys.by_head else ("rows", None, "kv_heads", None)
    return jax.tree.map(
        lambda x: constrain(x, ("rows", None) if x.ndim == 2 else axes[: x.ndim]), keys
    )


def _attend_by_mode(
    q: Float[Array, "B T N H"],
    own: KeyValues,
    cached: Sequence[KeyValues],
    mode: tuple[tuple[AttentionMode, int], ...],
    blocks: Int[Array, "B T"] | None,
    options: dict[str, Any],
) -> Float[Array, "B T N H"]:
    """Blocks of rows, each in its mode."""
    period = sum(rows for _, rows in mode)
    if q.shape[0] % period:
        raise ValueError(f"{q.shape[0]} rows cannot be split in blocks of {period} rows")
    outputs, start = [], 0

    def take(tree: Any, start: int, rows: int) -> Any:
        # Folded to [repeats, period, ...]: devices whose rows are whole repeats cut up their own
        # and send nothing.
        fold = lambda x: x.reshape(-1, period, *x.shape[1:])
        pick = lambda x: fold(x)[:, start : start + rows].reshape(-1, *x.shape[1:])
        return jax.tree.map(pick, tree)

    for block_mode, rows in mode:
        out = _attend_one_mode(
            take(q, start, rows),
            take(own, start, rows),
            take(tuple(cached), start, rows),
            block_mode,
            take(blocks, start, rows),
            options,
        )
        outputs.append(out.reshape(-1, rows, *out.shape[1:]))
        start += rows
    return jnp.concatenate(outputs, axis=1).reshape(q.shape)


def _attend_one_mode(
    q: Float[Array, "B T N H"],
    own: KeyValues,
    cached: Sequence[KeyValues],
    mode: AttentionMode,
    blocks: Int[Array, "B T"] | None,
    options: dict[str, Any],
) -> Float[Array, "B T N H"]:
    prefix = mode is AttentionMode.PREFIX
    if prefix and blocks is None:
        raise ValueError("prefix attention needs `blocks`, which say what sees its later tokens")
    blocks = blocks if prefix else None
    causal = mode is not AttentionMode.BIDIRECTIONAL
    queries = kernels.Queries(q, own.positions, own.segments, blocks)
    own = dataclasses.replace(own, blocks=blocks, causal=causal)
    symmetric_window = mode is not AttentionMode.CAUSAL
    fused = _fused_attention(queries, own, cached, symmetric_window, options)
    if fused is not None:
        return fused
    return checkpoint_name(
        kernels.blocked_attention(
            queries, [own, *cached], symmetric_window=symmetric_window, **options
        ),
        kernels.ATTENTION_NAME,
    )


def _fused_attention(
    queries: kernels.Queries,
    own: KeyValues,
    cached: Sequence[KeyValues],
    symmetric_window: bool,
    options: dict[str, Any],
) -> Float[Array, "B T N H"] | None:
    """The platform's fused kernel, or None where there is none for these shapes.

    One token over a cache stays with the blocked path, which reads the keys where they lie: a
    kernel over cached and own keys needs them side by side.
    """
    if queries.q.shape[1] == 1:
        return None
    options = {**options, "symmetric_window": symmetric_window}
    platform = kernels.platform()
    if platform == "tpu":
        return splash_attention(queries, own, cached, **options)
    return cudnn_attention(queries, own, cached, **options) if platform == "gpu" else None
