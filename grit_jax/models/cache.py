"""The working cache that generation reads and appends to, and how documents get into it.

Every forward pass returns keys *before* rotary embedding. `insert` rotates them once to the place
they get; a document's record is therefore valid at any offset, in any order, beside any other
document.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.models.attention import finite_or_zero, finite_tokens
from grit_jax.models.config import ModelConfig
from grit_jax.models.rotary import Rotation, depends_on_length, rotate, rotation
from grit_jax.types import KV

INT8, TINY = 127, 1e-12  # largest code, smallest scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KVCache:
    """Rotated keys and values of `S` slots in each of `B` rows, head by head.

    Slots come last in the keys, so that a decoded token's products with all of them run along
    memory.

    With scales they are int8: a key channel is worth its `k_scale`, a value its `v_scale`; such a
    cache is only read. A slot's `segments` entry says which queries see it (0: empty; below 0: a
    token that was not finite, see `mark_nonfinite`), its `positions` entry where it stands.
    `cursor` is the next free slot, the same in every row; ragged rows leave empty slots behind.
    """

    k: Float[Array, "L B K H S"]
    v: Float[Array, "L B K S H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    cursor: Int[Array, ""]
    k_scale: Float[Array, "L B K H"] | None = None
    v_scale: Float[Array, "L B K S"] | None = None

    @property
    def slots(self) -> int:
        """Capacity `S`."""
        return self.positions.shape[1]


def empty_cache(
    config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype | None = None
) -> KVCache:
    """A cache with room for `slots` tokens in each row; int8 brings scales."""
    L, K, H = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    dtype = dtype or jnp.dtype(config.dtype)
    marks = jnp.zeros((rows, slots), jnp.int32)
    k, v = jnp.zeros((L, rows, K, H, slots), dtype), jnp.zeros((L, rows, K, slots, H), dtype)
    scales = (
        (None, None)
        if dtype != jnp.int8
        else (jnp.zeros((L, rows, K, H)), jnp.zeros((L, rows, K, slots)))
    )
    return KVCache(k, v, marks, marks, jnp.zeros((), jnp.int32), *scales)


def rotate_keys(
    kv: KV, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig
) -> Float[Array, "L B T K H"]:
    """The keys of a pass rotated to `positions`, each layer's about its own base."""
    by = {
        local: rotation(config, positions, segments, local=local) for local in set(_local(config))
    }
    if len(by) == 1:
        return rotate(kv.k, by.popitem()[1])
    which = jnp.asarray(_local(config), jnp.int32)
    pick = lambda full, local: jnp.stack([full, local])[which]
    return rotate(
        kv.k, Rotation(pick(by[False].cos, by[True].cos), pick(by[False].sin, by[True].sin))
    )


def _local(config: ModelConfig) -> list[bool]:
    return [kind.local_rope for kind in config.layer_kinds]


def check_records(config: ModelConfig) -> None:
    """Whether records of documents can serve at all.

    Raises:
      GritError: the rotary scaling depends on the length of the whole text, which a document's
        record cannot know.
    """
    if depends_on_length(config):
        raise GritError(
            "rotary scaling 'dynamic' turns a key by the length of the whole text, so cached"
            " documents cannot serve with it; use a layout that reads documents as text, or a"
            " checkpoint with linear, llama3 or yarn scaling"
        )


def cache_from(
    kv: KV, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig
) -> KVCache:
    """A full cache made of one pass, differentiable: how training reads over documents.

    Raises:
      GritError: a model whose documents cannot be cached.
    """
    check_records(config)
    kv, marked = mark_nonfinite(kv, segments)
    by_head = _by_head(KV(rotate_keys(kv, positions, segments, config), kv.v))
    return KVCache(by_head.k, by_head.v, positions, marked, jnp.asarray(kv.k.shape[2], jnp.int32))


def mark_nonfinite(kv: KV, segments: Int[Array, "B T"]) -> tuple[KV, Int[Array, "B T"]]:
    """Zeros in place of keys and values that are not finite, and the segments with those of such
    tokens negated.

    Attention gives NaN for the text that reads a marked token, and for no other (a kernel
    multiplies what a query does not see by zero, and zero times NaN is NaN).
    """
    finite = finite_tokens(kv.k, kv.v).all(axis=0)
    return KV(finite_or_zero(kv.k), finite_or_zero(kv.v)), jnp.where(finite, segments, -segments)


def insert(
    cache: KVCache,
    kv: KV,
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    config: ModelConfig,
) -> KVCache:
    """Writes `T` tokens (documents, a prompt, or the token just decoded) at the cursor, rotated to
    `positions`.

    The caller sees to it that `cursor + T <= S`; XLA would clamp the write otherwise.
    """
    at = cache.cursor
    write = jax.lax.dynamic_update_slice
    kv, marked = mark_nonfinite(kv, segments)
    by_head = _by_head(KV(rotate_keys(kv, positions, segments, config), kv.v))
    return KVCache(
        k=write(cache.k, by_head.k.astype(cache.k.dtype), (0, 0, 0, 0, at)),
        v=write(cache.v, by_head.v.astype(cache.v.dtype), (0, 0, 0, at, 0)),
        positions=write(cache.positions, positions.astype(jnp.int32), (0, at)),
        segments=write(cache.segments, marked.astype(jnp.int32), (0, at)),
        cursor=at + kv.k.shape[2],
    )


def place_keys(
    k: Float[Array, "B K H P"],
    positions: Int[Array, "B P"],
    segments: Int[Array, "B P"],
    config: ModelConfig,
    *,
    local: bool,
) -> tuple[Float[Array, "B K H/2 P"], Float[Array, "B K H/2 P"]]:
    """One layer's keys of a record rotated to `positions` (`local`: see `rotation`): each half of
    the channels."""
    by = rotation(config, positions, segments, local=local)
    cos, sin = (a.swapaxes(1, 2)[:, None] for a in (by.cos, by.sin))
    first, second = jnp.split(k.astype(jnp.float32), 2, axis=2)
    return first * cos - second * sin, second * cos + first * sin


def write_layer(
    cache: KVCache,
    layer: Int[Array, ""],
    halves: tuple[Float[Array, "B K H/2 T"], Float[Array, "B K H/2 T"]],
    v: Float[Array, "B K T H"],
) -> KVCache:
    """Rotated keys (from `place_keys`) and values of one layer in the first slots, as int8 where
    the cache is.

    The halves are written one by one: joined first, they would cost XLA's CPU backend more than
    everything else here. The marks of the slots are the caller's.
    """

    def write(whole: Array, part: Array, channel: int = 0) -> Array:
        at = (layer, 0, 0, channel, 0)[: whole.ndim]
        return jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype)[None], at)

    k, v_cache, k_scale, v_scale = cache.k, cache.v, cache.k_scale, cache.v_scale
    if v_scale is not None:
        worth = jnp.maximum(jnp.abs(v).max(3) / INT8, TINY)
        v_scale, v = write(v_scale, worth), jnp.round(v / worth[..., None])
    for number, half in enumerate(halves):
        channel = number * half.shape[2]
        if k_scale is not None:
            worth = jnp.maximum(jnp.abs(half).max(3) / INT8, TINY)
            k_scale, half = write(k_scale, worth, channel), jnp.round(half / worth[..., None])
        k = write(k, half, channel)
    return dataclasses.replace(cache, k=k, v=write(v_cache, v), k_scale=k_scale, v_scale=v_scale)


def _by_head(kv: KV) -> KV:
    """`[L B T K H]` as a cache has them."""
    return KV(kv.k.transpose(0, 1, 3, 4, 2), kv.v.transpose(0, 1, 3, 2, 4))
