"""Gathers the texts' vectors from packed rows, without any device holding all of them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.sharding import constrain, mesh_axes

BLOCK = 4096  # vectors that are sent at a time


def gather_vectors(
    vectors: Float[Array, "n c M d"], slots: Int[Array, " N"]
) -> Float[Array, "N d"]:
    """The vectors of `slots`, in that order: slot `(i * c + k) * M + m` is `vectors[i, k, m]`.

    On a mesh, the rows `c` of each chunk and the results are sharded. For each block of results,
    every device picks the vectors that it holds, with zeros elsewhere, and a sum over devices
    (reduce-scatter) gives each device its part. So each result is sent once, while XLA's gather
    would send all of them to every device; likewise for the gradient.
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
