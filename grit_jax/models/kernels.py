"""Queries and keys as attention kernels take them, and the blocked XLA path that runs anywhere.

The blocked path reads several groups of keys (a row's own, those of caches) with a running softmax:
a cache is read where it lies, and long inputs never build their T x S matrix.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grit_jax.sharding import num_shards

# The name, for `jax.checkpoint`, of what attention's backward pass needs of its forward pass.
ATTENTION_NAME = "attention"
MASKED = -1e30  # finite: a query that sees nothing averages all values instead of giving NaN
KEY_BLOCK = 512  # keys per step of the blocked path, for groups of more than twice as many


@dataclasses.dataclass
class Queries:
    """Rotated queries with their positions and segments (`positions` also order the tokens of a
    segment)."""

    q: Float[Array, "B T N H"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    blocks: Int[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KeyValues:
    """Rotated keys and values of one source: a row's own tokens, or a layer of a cache.

    Segment 0 is padding or an empty slot. A negative segment marks a token of segment `-segment`
    whose keys or values were not finite and are zeros here (see `attention.attend`); no query sees
    it.

    Attributes:
      k: `[B S K H]`, and `[B K H S]` where `by_head`.
      v: `[B S K H]`, and `[B K S H]` where `by_head`.
      blocks: see `types.Rows`.
      causal: a key is seen from its own place in the row onwards, and by its block.
      by_head: the axis order of a cache.
      offset: place in the row of the first key, None for 0.
      k_scale, v_scale: of int8 keys (one for each channel) and values (one for each).
    """

    k: Float[Array, "B S K H"] | Float[Array, "B K H S"]
    v: Float[Array, "B S K H"] | Float[Array, "B K S H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    blocks: Int[Array, "B S"] | None = None
    causal: bool = dataclasses.field(metadata={"static": True}, default=False)
    by_head: bool = dataclasses.field(metadata={"static": True}, default=False)
    offset: Int[Array, ""] | int | None = None
    k_scale: Float[Array, "B K H"] | None = None
    v_scale: Float[Array, "B K S"] | None = None

    @property
    def length(self) -> int:
        """The number of keys `S`."""
        return self.segments.shape[1]

    def dequantised(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Keys and values in a float type, int8 codes multiplied by their scales."""

        def wide(x: Array, scale: Array | None) -> Array:
            return x.astype(dtype) if scale is None else (x * scale[..., None]).astype(dtype)

        return wide(self.k, self.k_scale), wide(self.v, self.v_scale)

    def slice(self, start: Int[Array, ""] | int, size: int) -> KeyValues:
        """`size` keys from `start` on."""
        take = lambda x, axis: (
            None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis)
        )
        return dataclasses.replace(
            self,
            k=take(self.k, 3 if self.by_head else 1),
            v=take(self.v, 2 if self.by_head else 1),
            positions=take(self.positions, 1),
            segments=take(self.segments, 1),
            blocks=take(self.blocks, 1),
            offset=start if self.offset is None else self.offset + start,
            v_scale=take(self.v_scale, 2),
        )


def key_mask(
    queries: Queries, keys: KeyValues, *, window: int | None, symmetric_window: bool
) -> Bool[Array, "B T S"]:
    """Which keys each query sees."""
    mask = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (keys.segments > 0)[
        :, None, :
    ]
    if keys.causal:
        t, s = jnp.arange(queries.segments.shape[1]), jnp.arange(keys.length)
        s = s if keys.offset is None else keys.offset + s
        seen = (s[None, :] <= t[:, None])[None]
        if keys.blocks is not None and queries.blocks is not None:
            same = queries.blocks[:, :, None] == keys.blocks[:, None, :]
            seen |= same & (keys.blocks > 0)[:, None, :]
        mask &= seen
    if window is not None:
        distance = queries.positions[:, :, None] - keys.positions[:, None, :]
        mask &= (jnp.abs(distance) if symmetric_window else distance) < window
    return mask


def blocked_attention(
    queries: Queries,
    groups: list[KeyValues],
    *,
    window: int | None,
    symmetric_window: bool,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Softmax attention over the union of several groups of keys, long ones read in blocks.

    Queries of one key/value head are stacked into one matrix (`G T` rows): XLA's CPU backend runs
    these products two to four times as fast as the four-axis einsum.
    """
    B, T, N, H = queries.q.shape
    K = groups[0].k.shape[1 if groups[0].by_head else 2]
    G = N // K
    q = (queries.q.astype(jnp.float32) * scale).astype(queries.q.dtype)
    if T == 1:
        return _one_token_attention(
            q.reshape(B, K, G, H), queries, groups, window, symmetric_window, softcap
        )
    q = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    # Queries that are split over devices along T must keep that axis.
    stacked = num_shards("tokens", T) == 1
    lead, by_query, by_key = (
        ((B * K, G * T), "xt", "x") if stacked else ((B, K, G, T), "bkgt", "bk")
    )
    q = q.reshape(*lead, H)

    def heads_first(x: jax.Array, by_head: bool) -> jax.Array:
        x = x if by_head else x.transpose(0, 2, 1, 3)
        return x.reshape(B * K, *x.shape[2:]) if stacked else x

    def scaled(x: jax.Array, scale: jax.Array | None) -> jax.Array:
        """`x` times what is `[B K n]` along its last axis."""
        return (
            x
            if scale is None
            else x * scale.reshape(*((B * K, 1) if stacked else (B, K, 1, 1)), -1)
        )

    def scores(keys: KeyValues) -> jax.Array:
        equation = f"{by_query}h,{by_key}{'hs' if keys.by_head else 'sh'}->{by_query}s"
        k = heads_first(keys.k, keys.by_head).astype(q.dtype)
        s = jnp.einsum(
            equation, scaled(q, keys.k_scale).astype(q.dtype), k, preferred_element_type=jnp.float32
        )
        mask = key_mask(queries, keys, window=window, symmetric_window=symmetric_window)
        s = soft_cap(s.reshape(B, K, G, T, keys.length), softcap)
        return jnp.where(mask[:, None, None], s, MASKED).reshape(*lead, keys.length)

    def values(p: jax.Array, keys: KeyValues) -> jax.Array:
        v = heads_first(keys.v, keys.by_head).astype(q.dtype)
        equation = f"{by_query}s,{by_key}sh->{by_query}h"
        return jnp.einsum(
            equation, scaled(p, keys.v_scale).astype(q.dtype), v, preferred_element_type=jnp.float32
        )

    total_keys = sum(keys.length for keys in groups)
    if T * total_keys <= (2 * KEY_BLOCK) ** 2:
        # One softmax over all groups.
        p = jax.nn.softmax(jnp.concatenate([scores(keys) for keys in groups], axis=-1), axis=-1)
        ends = np.cumsum([keys.length for keys in groups])[:-1]
        out = sum(
            values(block, keys)
            for block, keys in zip(jnp.split(p, ends, axis=-1), groups, strict=True)
        )
    else:
        state = (jnp.full(lead, MASKED), jnp.zeros(lead), jnp.zeros((*lead, H)))

        def step(state, keys: KeyValues):
            top, total, out = state
            s = scores(keys)
            new_top = jnp.maximum(top, s.max(-1))
            p = jnp.exp(s - new_top[..., None])
            rescale = jnp.exp(top - new_top)
            return new_top, total * rescale + p.sum(-1), out * rescale[..., None] + values(p, keys)

        for keys in groups:
            state = _over_blocks(step, state, keys)
        out = state[2] / jnp.maximum(state[1], 1e-30)[..., None]
    return (
        out.reshape(B, K, G, T, H)
        .transpose(0, 3, 1, 2, 4)
        .reshape(B, T, N, H)
        .astype(queries.q.dtype)
    )


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Scores bent into `(-cap, cap)` (Gemma 2): `cap * tanh(x / cap)`."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def _one_token_attention(
    q: Float[Array, "B K G H"],
    queries: Queries,
    groups: list[KeyValues],
    window: int | None,
    symmetric_window: bool,
    softcap: float | None,
) -> Float[Array, "B 1 N H"]:
    """Attention of one decoded token: each group of keys is read once, where it lies."""

    def scores(keys: KeyValues) -> jax.Array:
        form = "bkgh,bkhs->bkgs" if keys.by_head else "bkgh,bskh->bkgs"
        scaled = q if keys.k_scale is None else (q * keys.k_scale[:, :, None]).astype(q.dtype)
        s = jnp.einsum(form, scaled, keys.k.astype(q.dtype), preferred_element_type=jnp.float32)
        mask = key_mask(queries, keys, window=window, symmetric_window=symmetric_window)
        return jnp.where(mask[:, None], soft_cap(s, softcap), MASKED)

    def values(p: jax.Array, keys: KeyValues) -> jax.Array:
        form = "bkgs,bksh->bkgh" if keys.by_head else "bkgs,bskh->bkgh"
        p = p if keys.v_scale is None else p * keys.v_scale[:, :, None]
        return jnp.einsum(
            form, p.astype(q.dtype), keys.v.astype(q.dtype), preferred_element_type=jnp.float32
        )

    logits = [scores(keys) for keys in groups]
    top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in logits])
    weights = [jnp.exp(s - top) for s in logits]
    total = sum(p.sum(-1, keepdims=True) for p in weights)
    out = sum(values(p, keys) for p, keys in zip(weights, groups, strict=True)) / jnp.maximum(
        total, 1e-30
    )
    return out.reshape(queries.q.shape).astype(queries.q.dtype)


def _over_blocks(step, state, keys: KeyValues):
    """Applies `step` to a group of keys, block by block where it is long; blocks are recomputed in
    the backward pass."""
    if keys.length <= 2 * KEY_BLOCK:
        return step(state, keys)
    whole, rest = divmod(keys.length, KEY_BLOCK)
    block = jax.checkpoint(lambda state, start: step(state, keys.slice(start, KEY_BLOCK)))
    state = jax.lax.scan(
        lambda state, i: (block(state, i * KEY_BLOCK), None), state, jnp.arange(whole)
    )[0]
    return step(state, keys.slice(whole * KEY_BLOCK, rest)) if rest else state


def platform() -> str:
    """The platform the program is traced for: that of the mesh in use (ahead-of-time too), else the
    default."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.abstract_device is not None:
        kind = mesh.abstract_device.device_kind.lower()
        return "tpu" if "tpu" in kind else "gpu" if "nvidia" in kind else "cpu"
    return jax.default_backend()
