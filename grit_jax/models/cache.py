"""The working cache that generation reads and appends to, and how documents get into it.

Every forward pass returns keys *before* rotary embedding. `insert` rotates them once to the place they get; a
document's record is therefore valid at any offset, in any order, beside any other document.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.config import ModelConfig
from grit_jax.models.rotary import Rotation, depends_on_length, rotate, rotation
from grit_jax.types import KV, GritError


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KVCache:
    """Rotated keys and values of `S` slots in each of `B` rows.

    A slot's `segments` entry says which queries see it (0: empty), its `positions` entry where it stands.
    `cursor` is the next free slot, the same in every row; ragged rows leave empty slots behind.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    cursor: Int[Array, ""]

    @property
    def slots(self) -> int:
        """Capacity `S`."""
        return self.k.shape[2]


def empty_cache(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype | None = None) -> KVCache:
    """A cache with room for `slots` tokens in each row."""
    shape = (config.num_hidden_layers, rows, slots, config.num_key_value_heads, config.head_dim)
    dtype = dtype or jnp.dtype(config.dtype)
    marks = jnp.zeros((rows, slots), jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), marks, marks, jnp.zeros((), jnp.int32))


def rotate_keys(
    kv: KV, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig
) -> Float[Array, "L B T K H"]:
    """The keys of a pass rotated to `positions`, each layer's about its own base."""
    by = {local: rotation(config, positions, segments, local=local) for local in set(_local(config))}
    if len(by) == 1:
        return rotate(kv.k, by.popitem()[1])
    which = jnp.asarray(_local(config), jnp.int32)
    pick = lambda full, local: jnp.stack([full, local])[which]
    return rotate(kv.k, Rotation(pick(by[False].cos, by[True].cos), pick(by[False].sin, by[True].sin)))


def _local(config: ModelConfig) -> list[bool]:
    return [kind.local_rope for kind in config.layer_kinds]


def check_records(config: ModelConfig) -> None:
    """Whether records of documents can serve at all.

    Raises:
      GritError: the rotary scaling depends on the length of the whole text, which a document's record cannot know.
    """
    if depends_on_length(config):
        raise GritError(
            "rotary scaling 'dynamic' turns a key by the length of the whole text, so cached documents cannot serve "
            "with it; use a layout that reads documents as text, or a checkpoint with linear, llama3 or yarn scaling"
        )


def cache_from(
    kv: KV, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig
) -> KVCache:
    """A full cache made of one pass, differentiable: how training reads over documents.

    Raises:
      GritError: a model whose documents cannot be cached.
    """
    check_records(config)
    slots = jnp.asarray(kv.k.shape[2], jnp.int32)
    return KVCache(rotate_keys(kv, positions, segments, config), kv.v, positions, segments, slots)


def insert(
    cache: KVCache, kv: KV, positions: Int[Array, "B T"], segments: Int[Array, "B T"], config: ModelConfig
) -> KVCache:
    """Writes `T` tokens (documents, a prompt, or the token just decoded) at the cursor, rotated to `positions`.

    The caller sees to it that `cursor + T <= S`; XLA would clamp the write otherwise.
    """
    at = cache.cursor
    write = jax.lax.dynamic_update_slice
    keys = rotate_keys(kv, positions, segments, config).astype(cache.k.dtype)
    return KVCache(
        k=write(cache.k, keys, (0, 0, at, 0, 0)),
        v=write(cache.v, kv.v.astype(cache.v.dtype), (0, 0, at, 0, 0)),
        positions=write(cache.positions, positions.astype(jnp.int32), (0, at)),
        segments=write(cache.segments, segments.astype(jnp.int32), (0, at)),
        cursor=at + kv.k.shape[2],
    )
