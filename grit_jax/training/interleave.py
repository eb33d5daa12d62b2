"""Rows of two kinds through the layers in one pass, so that each weight is gathered once for both.

Split over devices, rows stand so that each device has its share of either kind: the two are
interleaved device by device, and joining or parting them sends nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grit_jax.sharding import constrain, ways_of
from grit_jax.types import Rows


def repeats(first: int, second: int) -> int:
    """How many times (some of the first, some of the second) repeats: the ways that rows are split
    over the mesh.

    1, the one block after the other, where a kind's rows do not divide among the devices.
    """
    ways = ways_of("rows", first)
    return ways if second % ways == 0 else 1


def together(
    first: Float[Array, "R ..."], second: Float[Array, "Q ..."]
) -> Float[Array, "R+Q ..."]:
    """The rows of both, interleaved as `repeats` says."""
    n = repeats(len(first), len(second))
    fold = lambda x: x.reshape(n, len(x) // n, *x.shape[1:])
    both = jnp.concatenate([fold(first), fold(second)], axis=1)
    return _spread(both.reshape(-1, *first.shape[1:]))


def apart(both: Float[Array, "R+Q ..."], first: int, second: int) -> tuple[Array, Array]:
    """What `together` joined: `first` rows and `second` rows."""
    n = repeats(first, second)
    folded = both.reshape(n, len(both) // n, *both.shape[1:])
    parts = folded[:, : first // n], folded[:, first // n :]
    a, b = (_spread(part.reshape(-1, *both.shape[1:])) for part in parts)
    return a, b


def joined_rows(first: Rows, second: Rows) -> Rows:
    """Packed rows of one length; a kind without blocks has none to see."""
    blocks = None
    if first.blocks is not None or second.blocks is not None:
        blocks = together(
            *(jnp.zeros_like(x.segments) if x.blocks is None else x.blocks for x in (first, second))
        )
    return Rows(
        together(first.tokens, second.tokens),
        together(first.positions, second.positions),
        together(first.segments, second.segments),
        blocks,
    )


def _spread(x: Float[Array, "R T ..."]) -> Float[Array, "R T ..."]:
    return constrain(x, ("rows", "tokens", *[None] * x.ndim)[: x.ndim])
