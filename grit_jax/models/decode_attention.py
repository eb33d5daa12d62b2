"""Attention of one decoded token per row to a cache whose rows have a length each.

Slots `0 ... lengths[b] - 1` of row `b` are valid, and the decoded token sees all of them. The cache
is read in blocks where it lies, and no block behind a row's length is:

- on TPU by a kernel (`decode_kernel`), where heads are a multiple of 128 and the capacity is one of
  the kernel's block. With narrower heads the compiler keeps values in another layout than kernels
  take, and copies the whole cache for each call.
- on the CPU four rows of similar lengths at a time by XLA: the cost follows the sum of the
  lengths.
- on GPU, and for other shapes on TPU, all rows side by side: the cost follows the longest length.

A row's result does not depend, bit for bit, on the capacity (on TPU: from one block up), on the
other rows or on what is stored behind its length, as long as that is finite.

Windows, segments and marks are not expressed by a length: rows that need them use
`attention.attend` with the cache as a group of keys.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from grit_jax.models import decode_kernel
from grit_jax.models.kernels import MASKED, platform, soft_cap
from grit_jax.sharding import fitted_spec

# Keys of a block: the fewer, the less is read behind a row's length, and the more often the loop's
# fixed cost is paid.
DECODE_BLOCK = 256
# On a CPU: keys of a block, and rows side by side at most. For 12 layers of 16 rows, 9 query and 3
# key heads of 64, one row and 256 keys at a time took 9.8 ms at length 100, 33 at lengths up to
# 1,500 and 70 at 2,000; these take 4.2, 27 and 53 (and one busy row of 1,800 13 instead of 4.4).
CPU_BLOCK, CPU_ROWS = 128, 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeCache:
    """Rotated keys and values of all layers, and how many slots of each row are valid.

    Slots behind a row's length may hold anything that is finite.

    Attributes:
      k_scale, v_scale: of int8 codes, as in `cache.KVCache`.
    """

    k: Float[Array, "L B K H S"]
    v: Float[Array, "L B K S H"]
    lengths: Int[Array, " B"]
    k_scale: Float[Array, "L B K H"] | None = None
    v_scale: Float[Array, "L B K S"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class OwnToken:
    """Rotated key and value of the decoded token itself, which are not in the cache yet."""

    k: Float[Array, "B K H"]
    v: Float[Array, "B K H"]


def decode_attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H S"],
    v: Float[Array, "B K S H"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    softcap: float | None,
    k_scale: Float[Array, "B K H"] | None = None,
    v_scale: Float[Array, "B K S"] | None = None,
) -> Float[Array, "B N H"]:
    """Attention of a rotated query per row to the first `lengths[b]` keys of its row.

    Args:
      scale, softcap: as in `attention.attend`.
      k_scale, v_scale: of int8 keys and values.

    Returns:
      In the dtype of `q`; zeros for a row of length 0.
    """
    stacked = lambda x: None if x is None else x[None]
    cache = DecodeCache(k[None], v[None], lengths, stacked(k_scale), stacked(v_scale))
    return decode_attention_layer(q, None, cache, 0, scale=scale, softcap=softcap)


def decode_attention_layer(
    q: Float[Array, "B N H"],
    own: OwnToken | None,
    cache: DecodeCache,
    layer: Int[Array, ""] | int,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B N H"]:
    """As `decode_attention`, over one layer of a cache and the decoded token itself.

    Blocks are cut out of the stacks of all layers: a caller that scans over layers closes over the
    cache, and no layer is copied. Under a mesh each device computes its rows and heads.

    Args:
      own: seen beside the cache; None where the cache holds it.
      layer: which one of the cache's.
    """
    (B, N, H), K = q.shape, cache.k.shape[2]
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(B, K, N // K, H)
    layer = jnp.asarray(layer, jnp.int32)

    kind = platform()

    def local(q, own, cache, layer):
        if kind == "tpu" and decode_kernel.takes(cache.k):
            stacks = (cache.k, cache.v, cache.k_scale, cache.v_scale)
            return decode_kernel.decode_kernel(
                q, own and (own.k, own.v), stacks, cache.lengths, layer, softcap=softcap
            )
        rows = math.gcd(len(q), CPU_ROWS) if kind == "cpu" else len(q)
        block = CPU_BLOCK if kind == "cpu" else DECODE_BLOCK
        return _blocked(q, own, cache, layer, softcap, rows=rows, block_keys=block)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(scaled, own, cache, layer).reshape(B, N, H)
    spec = lambda x, *axes: None if x is None else fitted_spec(axes, x.shape, mesh)
    stacked = lambda x: spec(x, None, "rows", "kv_heads")
    token = lambda x: spec(x, "rows", "kv_heads")
    specs = (
        token(scaled),
        own and OwnToken(token(own.k), token(own.v)),
        DecodeCache(
            stacked(cache.k),
            stacked(cache.v),
            spec(cache.lengths, "rows"),
            stacked(cache.k_scale),
            stacked(cache.v_scale),
        ),
        PartitionSpec(),
    )
    out = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=token(scaled), check_vma=False)(
        scaled, own, cache, layer
    )
    return out.reshape(B, N, H)


def _blocked(
    q: Float[Array, "B K G H"],
    own: OwnToken | None,
    cache: DecodeCache,
    layer: Int[Array, ""],
    softcap: float | None,
    rows: int,
    block_keys: int,
) -> Float[Array, "B K G H"]:
    """`rows` rows of similar lengths at a time, block after block up to the longest of them, with a
    running softmax. A block behind a row's length changes nothing: it adds zeros."""
    B, K, G, H = q.shape
    S = cache.v.shape[3]
    if block_keys > S:  # a whole block, so that sums have the order that they have elsewhere
        cache = _padded(cache, block_keys - S)
        S = block_keys

    def product(form: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(
            form, x.astype(q.dtype), y.astype(q.dtype), preferred_element_type=jnp.float32
        )

    def some_rows(members: jax.Array | None) -> jax.Array:
        """The result of some rows, whose numbers are given, or of all."""
        mine = lambda x: x if members is None else x[members]
        lengths, query = jnp.minimum(mine(cache.lengths), S), mine(q)
        if own is None:
            top, total = jnp.full((rows, K, G), MASKED), jnp.zeros((rows, K, G))
            out = jnp.zeros((rows, K, G, H))
        else:
            top = soft_cap(product("bkgh,bkh->bkg", query, mine(own.k)), softcap)
            total = jnp.ones((rows, K, G))
            own_v = mine(own.v).astype(jnp.float32)[:, :, None]
            out = jnp.broadcast_to(own_v, (rows, K, G, H))
        if cache.k_scale is not None:
            scale = jax.lax.dynamic_index_in_dim(cache.k_scale, layer, keepdims=False)
            query = query * mine(scale)[:, :, None]

        def block(number: jax.Array, state: tuple) -> tuple:
            top, total, out = state
            first = number * block_keys
            start = jnp.minimum(first, S - block_keys)

            def take(stack: jax.Array, axis: int) -> jax.Array:
                """This block; at the end of a capacity that is no multiple of a block, keys of the
                block before come behind it."""
                at: list[jax.Array | int] = [layer, *[0] * (stack.ndim - 1)]
                sizes = [1, B, *stack.shape[2:]]
                at[axis], sizes[axis] = start, block_keys
                if members is None:
                    part = jax.lax.dynamic_slice(stack, at, sizes)[0]
                else:
                    sizes[1] = 1
                    starts = [[layer, members[i], *at[2:]] for i in range(rows)]
                    cuts = [jax.lax.dynamic_slice(stack, begin, sizes)[0] for begin in starts]
                    part = jnp.concatenate(cuts)
                return part if S % block_keys == 0 else jnp.roll(part, start - first, axis - 1)

            s = soft_cap(product("bkgh,bkhs->bkgs", query, take(cache.k, 4)), softcap)
            valid = first + jnp.arange(block_keys) < lengths[:, None, None, None]
            new_top = jnp.maximum(top, jnp.where(valid, s, MASKED).max(-1))
            p = jnp.where(valid, jnp.exp(s - new_top[..., None]), 0.0)
            rescale = jnp.exp(top - new_top)
            weights = p if cache.v_scale is None else p * take(cache.v_scale, 3)[:, :, None]
            seen = product("bkgs,bksh->bkgh", weights, take(cache.v, 3))
            return new_top, total * rescale + p.sum(-1), out * rescale[..., None] + seen

        blocks = (lengths.max() + block_keys - 1) // block_keys
        _, total, out = jax.lax.fori_loop(0, blocks, block, (top, total, out))
        return (out / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)

    if rows == B:
        return some_rows(None)
    order = jnp.argsort(cache.lengths)
    out = jax.lax.map(some_rows, order.reshape(-1, rows)).reshape(q.shape)
    return out[jnp.argsort(order)]


def _padded(cache: DecodeCache, slots: int) -> DecodeCache:
    """The cache with more slots behind, of zeros."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, slots if i == axis else 0) for i in range(x.ndim)])

    v_scale = None if cache.v_scale is None else pad(cache.v_scale, 3)
    return dataclasses.replace(cache, k=pad(cache.k, 4), v=pad(cache.v, 3), v_scale=v_scale)
