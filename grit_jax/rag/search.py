"""Exact vector search on the device mesh: a matmul and a top-k, block by block, each device over its own rows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from grit_jax.sharding import ShardingRules, to_host
from grit_jax.types import GritError

# Rows scored at a time on each device: scores of a block are [Q, BLOCK], so all N of them never exist.
BLOCK = 16384
SMALLEST_BLOCK = 256
QUERIES_PER_CALL = 256


@dataclasses.dataclass
class SearchResult:
    """The best rows for each query, best first; equal scores in the order of the rows.

    `rows` and `scores` (inner products) are `[Q, min(k, N)]`.
    """

    rows: Int[np.ndarray, "Q k"]
    scores: Float[np.ndarray, "Q k"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Best:
    scores: Float[Array, "Q k"]
    rows: Int[Array, "Q k"]


class VectorSearch:
    """Rows of vectors on the devices of a mesh, searched by inner product.

    Args:
      vectors: `[N, D]`, at least one row; copied to the devices, split over the mesh axes of `rows`.
      mesh: None is the default device.

    Raises:
      GritError: not a two-dimensional array with a row in it.
    """

    def __init__(self, vectors: Float[np.ndarray, "N D"], mesh: Mesh | None = None, block: int = BLOCK):
        if vectors.ndim != 2 or not len(vectors):
            raise GritError(f"vectors must be [N, D] with N at least 1, are {vectors.shape}")
        self.count, self.dim = vectors.shape
        self.mesh = mesh
        axes = ShardingRules().rows
        self._axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        ways = int(np.prod([mesh.shape[a] for a in self._axes])) if mesh is not None else 1
        per_device = -(-self.count // ways)
        # A block larger than a device's share would be padding, one not of a power of two a shape of its own.
        self._block = min(block, max(SMALLEST_BLOCK, 1 << (per_device - 1).bit_length()))
        self._blocks = -(-per_device // self._block)
        self._ways = ways
        self._vectors = self._place(vectors)

    def search(self, queries: Float[np.ndarray, "Q D"], k: int) -> SearchResult:
        """The `k` best rows for each query (all of them, ranked, when there are fewer).

        Raises:
          GritError: `k` below 1, or queries of another dimension.
        """
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise GritError(f"query vectors must be [Q, {self.dim}], are {queries.shape}")
        if k < 1:
            raise GritError(f"k must be at least 1, is {k}")
        k = min(k, self.count)
        rows, scores = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
        for start in range(0, len(queries), QUERIES_PER_CALL):
            part = queries[start : start + QUERIES_PER_CALL]
            padded = np.zeros((1 << (len(part) - 1).bit_length(), self.dim), np.float32)
            padded[: len(part)] = part
            with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
                best = _search(
                    self._vectors, padded, np.int32(self.count), k=k, mesh=self.mesh, axes=self._axes
                )
            rows[start : start + len(part)] = to_host(best.rows)[: len(part)]
            scores[start : start + len(part)] = to_host(best.scores)[: len(part)]
        return SearchResult(rows, scores)

    def _place(self, vectors: np.ndarray) -> Float[Array, "N D"]:
        """Rows padded to whole blocks on every device; each device reads only its own part of a memory map."""
        share = self._blocks * self._block

        def part(start: int, stop: int) -> np.ndarray:
            found = np.asarray(vectors[start : min(stop, self.count)], np.float32)
            return np.pad(found, ((0, stop - start - len(found)), (0, 0)))

        shape = (self._ways, self._blocks, self._block, self.dim)
        if self.mesh is None:
            return jnp.asarray(part(0, share).reshape(shape))
        sharding = NamedSharding(self.mesh, PartitionSpec(self._axes))

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(self._ways)
            return part(first * share, last * share).reshape(last - first, *shape[1:])

        return jax.make_array_from_callback(shape, sharding, shard)


@functools.partial(jax.jit, static_argnames=("k", "mesh", "axes"))
def _search(
    vectors: Float[Array, "W N B D"],
    queries: Float[Array, "Q D"],
    count: Int[Array, ""],
    *,
    k: int,
    mesh: Mesh | None,
    axes: tuple[str, ...],
) -> _Best:
    """Top-k of every way (device) over its blocks, then of all ways together."""
    ways, blocks, block, _ = vectors.shape

    def own(vectors: jax.Array, first: jax.Array) -> _Best:
        """`vectors` [1 N B D] begin at row `first[0]`."""

        def step(best: _Best, part: tuple[jax.Array, jax.Array]) -> tuple[_Best, None]:
            values, start = part
            scores = jnp.einsum("qd,nd->qn", queries, values, precision=jax.lax.Precision.HIGHEST)
            rows = start + jnp.arange(block)
            scores = jnp.where(rows < count, scores, -jnp.inf)
            return _merge(best, _Best(scores, jnp.broadcast_to(rows, scores.shape)), k), None

        none = _Best(jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), count))
        if mesh is not None:
            none = jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), none)
        starts = first[0] + block * jnp.arange(blocks)
        best, _ = jax.lax.scan(step, none, (vectors[0], starts))
        return jax.tree.map(lambda a: a[None], best)

    firsts = blocks * block * jnp.arange(ways)
    if mesh is None:
        found = own(vectors, firsts)
    else:
        split = PartitionSpec(axes)
        found = jax.shard_map(own, mesh=mesh, in_specs=(split, split), out_specs=split)(vectors, firsts)
    # [W Q k] -> [Q W*k]: ways in the order of their rows, so that a tie goes to the lowest row here too.
    flat = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(len(queries), -1), found)
    scores, at = jax.lax.top_k(flat.scores, k)
    return _Best(scores, jnp.take_along_axis(flat.rows, at, axis=1))


def _merge(best: _Best, block: _Best, k: int) -> _Best:
    """The `k` best of both; `best` comes from lower rows and so wins ties (top_k prefers the first)."""
    few = min(k, block.scores.shape[1])
    scores, at = jax.lax.top_k(block.scores, few)
    rows = jnp.take_along_axis(block.rows, at, axis=1)
    scores, rows = jnp.concatenate([best.scores, scores], 1), jnp.concatenate([best.rows, rows], 1)
    scores, at = jax.lax.top_k(scores, k)
    return _Best(scores, jnp.take_along_axis(rows, at, axis=1))
