"""Vector search: exact on the device mesh, block by block, each device over its own rows; and what
stands in for it.

Whole float32 vectors are searched as they are. Where fewer bits or dimensions are searched
(`SearchSettings`), or another program searches (`milvus.MilvusSearch`), what is found are
candidates: their stored float32 vectors are read, those alone, and decide the order and the scores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.sharding import mesh_axes, num_row_shards, to_host

# Rows scored at a time on each device: scores of a block are [Q, BLOCK], so all N of them never
# exist.
BLOCK = 16384
SMALLEST_BLOCK = 256
QUERIES_PER_CALL = 256
PRECISIONS = ("float32", "bfloat16", "int8")
INT8_MAX = 127
LEAST_CANDIDATES = 32  # they cost next to nothing, and for k = 1 a few would be too few


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """What is searched before the stored vectors decide.

    Attributes:
      precision: of the vectors on the devices, one of PRECISIONS. bfloat16 halves their bytes; int8
        (symmetric, a scale for each row) takes a quarter of them, and four bytes a row.
      dim: the first so many dimensions of vectors of length one, brought to that length again
        (Matryoshka); None: all.
      oversampling: candidates for each of the `k` results (LEAST_CANDIDATES at least); their stored
        vectors are read. A result is missed only where more rows than that come before it in what
        is searched. Measured on 50,000 clustered vectors of 256 dimensions, k = 10: int8 finds all
        of them; half of the dimensions finds all where the first say most (deviations falling as
        1/sqrt(d), as Matryoshka training makes them), a quarter 98%; where all dimensions say as
        much, half finds 64%, and 96% with an oversampling of 16.
    """

    precision: str = "float32"
    dim: int | None = None
    oversampling: int = 4

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise GritError(
                f"search precision must be {', '.join(PRECISIONS)}, is {self.precision!r}"
            )
        if self.oversampling < 1:
            raise GritError(f"search oversampling must be at least 1, is {self.oversampling}")
        if self.dim is not None and self.dim < 1:
            raise GritError(f"search dimensions must be at least 1, are {self.dim}")

    def check(self, dim: int) -> None:
        """Whether vectors of so many dimensions can be searched like this.

        Raises:
          GritError: they have fewer.
        """
        if self.dim is not None and self.dim > dim:
            raise GritError(f"{self.dim} dimensions cannot be searched: the vectors have {dim}")

    def candidates(self, k: int, count: int) -> int:
        """How many rows are compared for `k` results among `count` rows."""
        return min(count, max(self.oversampling * k, LEAST_CANDIDATES))


@dataclasses.dataclass
class SearchResult:
    """The best rows for each query, best first; equal scores in the order of the rows.

    `rows` and `scores` (inner products) are `[Q, min(k, N)]`.
    """

    rows: Int[np.ndarray, "Q k"]
    scores: Float[np.ndarray, "Q k"]


class Search(Protocol):
    """What finds rows: exact search here, Milvus in `milvus.MilvusSearch`."""

    def search(self, queries: Float[np.ndarray, "Q D"], k: int) -> SearchResult:
        """The `k` best rows for each query (all of them, ranked, when there are fewer)."""


class StoredVectors(Protocol):
    """Float32 vectors `[N, D]` that need not be in memory: an array, a memory map, a selection of
    its rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


def checked_queries(queries: np.ndarray, k: int, dim: int) -> Float[np.ndarray, "Q D"]:
    """Query vectors in float32.

    Raises:
      GritError: `k` below 1, or queries of another dimension.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise GritError(f"query vectors must be [Q, {dim}], are {queries.shape}")
    if k < 1:
        raise GritError(f"k must be at least 1, is {k}")
    return queries


def rescored(
    vectors: StoredVectors,
    queries: Float[np.ndarray, "Q D"],
    candidates: Sequence[np.ndarray],
    k: int,
) -> SearchResult:
    """The `k` best of each query's candidates (`k` or more, no row twice) by their stored vectors,
    which are all that is read."""
    rows, scores = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    for i, query in enumerate(queries):
        own = np.sort(
            candidates[i]
        )  # in the order of the file; a stable sort then leaves ties to the lowest row
        found = (np.asarray(vectors[own], np.float64) @ query.astype(np.float64)).astype(np.float32)
        best = np.argsort(-found, kind="stable")[:k]
        rows[i], scores[i] = own[best], found[best]
    return SearchResult(rows, scores)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Rows:
    """Rows on the devices: float32, the bits of bfloat16, or int8 with a scale a row. W devices, N
    blocks of B rows.

    XLA's CPU compiler turns bfloat16 into float32 one number at a time, integers by the register:
    scores of the same numbers come seven times as fast where their bits are kept.
    """

    values: Array  # [W N B D]
    scales: Float[Array, "W N B"] | None

    def scores(self, queries: Float[Array, "Q D"]) -> Float[Array, "Q B"]:
        """Inner products of one block."""
        values, precision = self.values, jax.lax.Precision.DEFAULT
        if values.dtype == jnp.float32:
            precision = jax.lax.Precision.HIGHEST
        elif values.dtype == jnp.uint16:
            values = jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
        found = jnp.einsum("qd,nd->qn", queries, values.astype(jnp.float32), precision=precision)
        return found if self.scales is None else found * self.scales


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Best:
    scores: Float[Array, "Q k"]
    rows: Int[Array, "Q k"]


class VectorSearch:
    """Rows of vectors on the devices of a mesh, searched by inner product.

    Args:
      vectors: `[N, D]`, at least one row; copied to the devices, split over the mesh axes of
        `rows`, a block at a time: of a file no more than a block for each device is in the host's
          memory at once.
      mesh: None is the default device.
      settings: whole float32 vectors unless told.

    Raises:
      GritError: not a two-dimensional array with a row in it, or fewer dimensions than
        `settings.dim`.
    """

    def __init__(
        self,
        vectors: StoredVectors,
        mesh: Mesh | None = None,
        block: int = BLOCK,
        settings: SearchSettings = SearchSettings(),
    ):
        if len(vectors.shape) != 2 or not vectors.shape[0]:
            raise GritError(f"vectors must be [N, D] with N at least 1, are {vectors.shape}")
        self.count, self.dim = vectors.shape
        settings.check(self.dim)
        self.mesh, self.settings, self._stored = mesh, settings, vectors
        self._searched = settings.dim or self.dim
        self._whole = settings.precision == "float32" and self._searched == self.dim
        self._axes = mesh_axes("rows")
        ways = num_row_shards(mesh) if mesh is not None else 1
        per_device = -(-self.count // ways)
        # A block larger than a device's share would be padding, one not of a power of two a shape
        # of its own.
        self._block = min(block, max(SMALLEST_BLOCK, 1 << (per_device - 1).bit_length()))
        self._blocks = -(-per_device // self._block)
        self._ways = ways
        self._rows = self._place()

    def search(self, queries: Float[np.ndarray, "Q D"], k: int) -> SearchResult:
        """The `k` best rows for each query (all of them, ranked, when there are fewer).

        Raises:
          GritError: `k` below 1, or queries of another dimension.
        """
        queries = checked_queries(queries, k, self.dim)
        k = min(k, self.count)
        if self._whole:
            return self._search(queries, k)
        found = self._search(queries[:, : self._searched], self.settings.candidates(k, self.count))
        return rescored(self._stored, queries, list(found.rows), k)

    def _search(self, queries: Float[np.ndarray, "Q D"], k: int) -> SearchResult:
        """The `k` best in what is on the devices."""
        rows, scores = (
            np.zeros((len(queries), k), np.int64),
            np.zeros((len(queries), k), np.float32),
        )
        for start in range(0, len(queries), QUERIES_PER_CALL):
            part = queries[start : start + QUERIES_PER_CALL]
            padded = np.zeros((1 << (len(part) - 1).bit_length(), self._searched), np.float32)
            padded[: len(part)] = part
            with self._context():
                best = _search(
                    self._rows, padded, np.int32(self.count), k=k, mesh=self.mesh, axes=self._axes
                )
            rows[start : start + len(part)] = to_host(best.rows)[: len(part)]
            scores[start : start + len(part)] = to_host(best.scores)[: len(part)]
        return SearchResult(rows, scores)

    def _place(self) -> _Rows:
        """Rows padded to whole blocks on every device, which reads its own from the file, packed on
        the device."""
        W, N, B, D = self._ways, self._blocks, self._block, self._searched
        sharding = (
            NamedSharding(self.mesh, PartitionSpec(self._axes)) if self.mesh is not None else None
        )
        precision = self.settings.precision
        with self._context():
            rows = _empty(shape=(W, N, B, D), precision=precision, sharding=sharding)
        for number in range(N):
            parts = functools.partial(self._read, number)
            if sharding is None:
                block = jnp.asarray(parts((slice(0, 1),)))
            else:
                block = jax.make_array_from_callback((W, B, D), sharding, parts)
            with self._context():
                rows = _write(
                    rows, block, np.int32(number), precision=precision, shorten=self.dim > D
                )
            jax.block_until_ready(rows)  # or all blocks would wait in the host's memory
        return rows

    def _read(self, number: int, index: tuple[slice, ...]) -> Float[np.ndarray, "W B D"]:
        """A block of each of some ways; zeros where there are no more rows."""
        first, last, _ = index[0].indices(self._ways)
        block = np.zeros((last - first, self._block, self._searched), np.float32)
        for way in range(first, last):
            start = (way * self._blocks + number) * self._block
            found = self._stored[start : min(start + self._block, self.count)][:, : self._searched]
            block[way - first, : len(found)] = found
        return block

    def _context(self) -> Any:
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames=("shape", "precision", "sharding"))
def _empty(*, shape: tuple[int, ...], precision: str, sharding: NamedSharding | None) -> _Rows:
    """Zeros, made where they are to lie: a device holds no more than its own."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.uint16, "int8": jnp.int8}[precision]
    rows = _Rows(
        jnp.zeros(shape, dtype), jnp.zeros(shape[:-1], jnp.float32) if precision == "int8" else None
    )
    return rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)


@functools.partial(jax.jit, static_argnames=("precision", "shorten"), donate_argnums=0)
def _write(
    rows: _Rows,
    block: Float[Array, "W B D"],
    number: Int[Array, ""],
    *,
    precision: str,
    shorten: bool,
) -> _Rows:
    """One more block of every device."""
    if shorten:
        length = jnp.linalg.norm(block, axis=-1, keepdims=True)
        block = block / jnp.where(length > 0, length, 1)
    scales = rows.scales
    if precision == "bfloat16":
        block = jax.lax.bitcast_convert_type(block.astype(jnp.bfloat16), jnp.uint16)
    elif precision == "int8":
        scale = jnp.max(jnp.abs(block), -1) / INT8_MAX
        block = jnp.round(block / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8)
        scales = jax.lax.dynamic_update_index_in_dim(scales, scale, number, 1)
    return _Rows(jax.lax.dynamic_update_index_in_dim(rows.values, block, number, 1), scales)


@functools.partial(jax.jit, static_argnames=("k", "mesh", "axes"))
def _search(
    rows: _Rows,
    queries: Float[Array, "Q D"],
    count: Int[Array, ""],
    *,
    k: int,
    mesh: Mesh | None,
    axes: tuple[str, ...],
) -> _Best:
    """Top-k of every way (device) over its blocks, then of all ways together."""
    ways, blocks, block, _ = rows.values.shape

    def own(rows: _Rows, first: jax.Array) -> _Best:
        """`rows` [1 N B D] begin at row `first[0]`."""

        def step(best: _Best, part: tuple[_Rows, jax.Array]) -> tuple[_Best, None]:
            values, start = part
            scores = values.scores(queries)
            numbers = start + jnp.arange(block)
            scores = jnp.where(numbers < count, scores, -jnp.inf)
            return _merge(best, _Best(scores, jnp.broadcast_to(numbers, scores.shape)), k), None

        none = _Best(jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), count))
        if mesh is not None:
            none = jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), none)
        starts = first[0] + block * jnp.arange(blocks)
        best, _ = jax.lax.scan(step, none, (jax.tree.map(lambda a: a[0], rows), starts))
        return jax.tree.map(lambda a: a[None], best)

    firsts = blocks * block * jnp.arange(ways)
    if mesh is None:
        found = own(rows, firsts)
    else:
        split = PartitionSpec(axes)
        found = jax.shard_map(own, mesh=mesh, in_specs=(split, split), out_specs=split)(
            rows, firsts
        )
    # [W Q k] -> [Q W*k]: ways in the order of their rows, so that a tie goes to the lowest row here
    # too.
    flat = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(len(queries), -1), found)
    scores, at = jax.lax.top_k(flat.scores, k)
    return _Best(scores, jnp.take_along_axis(flat.rows, at, axis=1))


def _merge(best: _Best, block: _Best, k: int) -> _Best:
    """The `k` best of both; `best` comes from lower rows and so wins ties (top_k prefers the
    first)."""
    few = min(k, block.scores.shape[1])
    scores, at = jax.lax.top_k(block.scores, few)
    rows = jnp.take_along_axis(block.rows, at, axis=1)
    scores, rows = jnp.concatenate([best.scores, scores], 1), jnp.concatenate([best.rows, rows], 1)
    scores, at = jax.lax.top_k(scores, k)
    return _Best(scores, jnp.take_along_axis(rows, at, axis=1))
