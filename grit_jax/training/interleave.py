"""Rows of two kinds through the layers in one pass, so that each weight is gathered once for both.

Split over devices, rows stand so that each device has its share of either kind: the two are
interleaved device by device, and joining or parting them sends nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grit_jax.sharding import constrain, num_shards
from grit_jax.types import Rows


def num_blocks(first: int, second: int) -> int:
    """How many times (some of the first, some of the second) repeats: the ways that rows are split
    over the mesh.

    1, the one block after the other, where a kind's rows do not divide among the devices.
    """
    ways = num_shards("rows", first)
    return ways if second % ways == 0 else 1


def interleave(
    first: Float[Array, "B1 ..."], second: Float[Array, "B2 ..."]
) -> Float[Array, "B1+B2 ..."]:
    """The rows of both, interleaved as `num_blocks` says."""
    n = num_blocks(len(first), len(second))
    fold = lambda x: x.reshape(n, len(x) // n, *x.shape[1:])
    both = jnp.concatenate([fold(first), fold(second)], axis=1)
    return _spread(both.reshape(-1, *first.shape[1:]))


def deinterleave(both: Float[Array, "B1+B2 ..."], first: int, second: int) -> tuple[Array, Array]:
    """What `interleave` joined: `first` rows and `second` rows."""
    n = num_blocks(first, second)
    folded = both.reshape(n, len(both) // n, *both.shape[1:])
    parts = folded[:, : first // n], folded[:, first // n :]
    a, b = (_spread(part.reshape(-1, *both.shape[1:])) for part in parts)
    return a, b


def joined_rows(first: Rows, second: Rows) -> Rows:
    """Packed rows of one length; a kind without blocks has none to see."""
    blocks = None
    if first.blocks is not None or second.blocks is not None:
        blocks = interleave(
            *(jnp.zeros_like(x.segments) if x.blocks is None else x.blocks for x in (first, second))
        )
    return Rows(
        interleave(first.tokens, second.tokens),
        interleave(first.positions, second.positions),
        interleave(first.segments, second.segments),
        blocks,
    )


def _spread(x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
    return constrain(x, ("rows", "tokens", *[None] * x.ndim)[: x.ndim])
