"""Texts' representations, taken from where packing put them, with no device ever holding all of
them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.sharding import constrain, mesh_axes

BLOCK = 4096  # vectors that travel at a time


def gather_vectors(
    vectors: Float[Array, "n c M d"], slots: Int[Array, " N"]
) -> Float[Array, "N d"]:
    """The vectors of slots, in their order: slot `(i * c + k) * M + m` is `vectors[i, k, m]`.

    Over a mesh the rows `c` of each chunk are split, and so are the results. Every device then
    picks what it has of a block of results, zeros elsewhere, and the sum over devices leaves each
    with its part: what is sent is the result, once, where XLA's own way would give all of it to
    every device (and its gradient, likewise).
    """
    n, c, M, d = vectors.shape
    mesh, axes = jax.sharding.get_abstract_mesh(), mesh_axes("rows")
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)
    if ways == 1 or c % ways or len(slots) % ways:
        return vectors.reshape(-1, d)[slots]
    share = len(slots) // ways
    each = min(share, max(1, BLOCK // ways))
    padded = jnp.pad(slots.reshape(ways, share), [(0, 0), (0, -share % each)], constant_values=-1)
    blocks = padded.reshape(ways, -1, each).swapaxes(0, 1).reshape(-1, ways * each)
    rows = jax.sharding.PartitionSpec

    def local(mine: Float[Array, "n b M d"], blocks: Int[Array, "t w*e"]) -> Float[Array, "t*e d"]:
        b, device = c // ways, jax.lax.axis_index(axes)
        flat = mine.reshape(-1, d)

        def block(_: None, slot: Int[Array, " w*e"]) -> tuple[None, Float[Array, "e d"]]:
            row, segment = jnp.divmod(slot, M)
            chunk, k = jnp.divmod(row, c)
            here = (slot >= 0) & (k // b == device)
            gathered = flat[jnp.where(here, (chunk * b + k % b) * M + segment, 0)]
            gathered = jnp.where(here[:, None], gathered, 0)
            return None, jax.lax.psum_scatter(gathered, axes, scatter_dimension=0, tiled=True)

        return jax.lax.scan(jax.checkpoint(block), None, blocks)[1].reshape(-1, d)

    spec = rows(None, axes, None, None)
    taken = jax.shard_map(local, mesh=mesh, in_specs=(spec, rows()), out_specs=rows(axes, None))(
        constrain(vectors, (None, "rows", None, None)), blocks
    )
    if share % each == 0:
        return taken
    return constrain(taken.reshape(ways, -1, d)[:, :share].reshape(-1, d), ("rows", None))
