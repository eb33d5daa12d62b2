"""The cache that a pass reads, and how keys and values get into it: in training, over documents.
(The engine's cache, whose rows have a length each, is in `slot_cache`.)

Every forward pass returns keys *before* rotary embedding. `insert` rotates them once, to their
positions in the cache; a document's record is therefore valid at any offset, in any order, beside
any other document.

Keys and values have one axis order from the forward pass that makes them to the cache, in records
and on disk: head by head, keys `[... K H S]` and values `[... K S H]`. A decoded token's products
with all keys, and the weighted sum of all values, then run along memory.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.models.attention import finite_or_zero
from grit_jax.models.config import ModelConfig
from grit_jax.models.rotary import Rotation, depends_on_length, rotation
from grit_jax.types import KV


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KVCache:
    """Rotated keys and values of `S` slots in each of `B` rows.

    Attributes:
      positions: of the token in each slot.
      segments: the queries that see a slot are those of the same segment; 0 is an empty slot, and
        a negative number a token that was not finite (see `mark_nonfinite`).
      cursor: the next free slot, the same in every row; ragged rows leave empty slots behind.
      k_scale, v_scale: of an int8 cache, which is only read: codes of a key channel are multiplied
        by its `k_scale`, those of a value by its `v_scale`.
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
    """A cache with room for `slots` tokens in each row; an int8 one has scales."""
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
) -> Float[Array, "L B K H T"]:
    """The keys of a pass rotated to `positions`, each layer's with its own base."""
    local_layers = [kind.local_rope for kind in config.layer_kinds]
    by = {local: rotation(config, positions, segments, local=local) for local in set(local_layers)}
    if len(by) == 1:
        (chosen,) = by.values()
    else:
        layers = jnp.asarray(local_layers, jnp.int32)
        pick = lambda full, local: jnp.stack([full, local])[layers]
        chosen = Rotation(pick(by[False].cos, by[True].cos), pick(by[False].sin, by[True].sin))
    return jnp.concatenate(_rotated_halves(kv.k, chosen), axis=-2).astype(kv.k.dtype)


def _rotated_halves(
    k: Float[Array, "*B K H T"], by: Rotation
) -> tuple[Float[Array, "*B K H/2 T"], Float[Array, "*B K H/2 T"]]:
    """Both halves of the channels of keys, rotated in float32 (see `rotary.rotate`)."""
    cos, sin = (a.swapaxes(-1, -2)[..., None, :, :] for a in (by.cos, by.sin))
    first, second = jnp.split(k.astype(jnp.float32), 2, axis=-2)
    return first * cos - second * sin, second * cos + first * sin


def check_records(config: ModelConfig) -> None:
    """Checks that this model's documents can be cached.

    Raises:
      GritError: the rotary scaling depends on the length of the whole text, which is not known when
        a document is encoded.
    """
    if depends_on_length(config):
        raise GritError(
            "rotary scaling 'dynamic' rotates keys by the length of the whole text, so documents"
            " cannot be cached; use a layout that reads documents as text, or a checkpoint with"
            " linear, llama3 or yarn scaling"
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
    k = rotate_keys(kv, positions, segments, config)
    return KVCache(k, kv.v, positions, marked, jnp.asarray(positions.shape[1], jnp.int32))


def mark_nonfinite(kv: KV, segments: Int[Array, "B T"]) -> tuple[KV, Int[Array, "B T"]]:
    """Zeros in place of keys and values that are not finite, and the segments with those of such
    tokens negated.

    Attention gives NaN for the text that reads a marked token, and for no other (a kernel
    multiplies what a query does not see by zero, and zero times NaN is NaN).
    """
    finite = jnp.isfinite(kv.k).all(axis=(0, 2, 3)) & jnp.isfinite(kv.v).all(axis=(0, 2, 4))
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

    The caller ensures `cursor + T <= S`, because XLA would clamp the write otherwise.
    """
    at = cache.cursor
    write = jax.lax.dynamic_update_slice
    kv, marked = mark_nonfinite(kv, segments)
    k = rotate_keys(kv, positions, segments, config)
    return KVCache(
        k=write(cache.k, k.astype(cache.k.dtype), (0, 0, 0, 0, at)),
        v=write(cache.v, kv.v.astype(cache.v.dtype), (0, 0, 0, at, 0)),
        positions=write(cache.positions, positions.astype(jnp.int32), (0, at)),
        segments=write(cache.segments, marked.astype(jnp.int32), (0, at)),
        cursor=at + positions.shape[1],
    )


def place_keys(
    k: Float[Array, "B K H S"],
    positions: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    config: ModelConfig,
    *,
    local: bool,
) -> tuple[Float[Array, "B K H/2 S"], Float[Array, "B K H/2 S"]]:
    """One layer's keys rotated to `positions` (`local`: see `rotation`), in two halves of the
    channels."""
    return _rotated_halves(k, rotation(config, positions, segments, local=local))
