"""Attention kernels: splash on TPU, cuDNN on GPU, and a blocked XLA path that runs anywhere.

The blocked path reads several groups of keys (a row's own, those of caches) with a running softmax:
a cache is read where it lies, and long inputs never build their T x S matrix.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from grit_jax.sharding import fitted_spec, num_shards

# The name, for `jax.checkpoint`, of what attention's backward pass needs of its forward pass.
ATTENTION_NAME = "attention"
MASKED = -1e30  # finite: a query that sees nothing averages all values instead of giving NaN
KEY_BLOCK = 512  # keys per step of the blocked path, for groups of more than twice as many
CUDNN_HEAD = 128  # widest head of cuDNN's kernels for training, on every card that has them
SPLASH_TILE = 128  # splash works on multiples of this many tokens and of this many head dimensions
# Tokens of a tile of scores: the larger, the less often keys are read for them (MaxText takes 512
# on every generation; the kernel's own 128 reads more bytes a FLOP than a v5p or v6e can).
SPLASH_BLOCKS = (512, 384, 256, 128)
SPLASH_SIDES = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
)
# The name scope of splash's kernels in a program: tiles of scores that they compute, and all tiles.
TILES = "tiles_{}_of_{}"


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


def fused_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"] | None:
    """The platform's fused kernel for a pass without cache, or None where there is none for these
    shapes."""
    kind = platform()
    T, H = q.shape[1], q.shape[3]
    if kind == "tpu" and T % (SPLASH_TILE * num_shards("tokens", T)) == 0 and H % SPLASH_TILE == 0:
        return _splash(
            q, k, v, segments, causal=causal, window=window, scale=scale, softcap=softcap
        )
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    # cuDNN has no soft cap, and no head wider than this in its backward pass.
    if (
        kind == "gpu"
        and half
        and H % 8 == 0
        and H <= CUDNN_HEAD
        and window is None
        and softcap is None
    ):
        same = (segments[:, :, None] == segments[:, None, :])[:, None]
        out = jax.nn.dot_product_attention(
            q, k, v, mask=same, scale=scale, is_causal=causal, implementation="cudnn"
        )
        return checkpoint_name(out, ATTENTION_NAME)
    return None


def platform() -> str:
    """The platform the program is traced for: that of the mesh in use (ahead-of-time too), else the
    default."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.abstract_device is not None:
        kind = mesh.abstract_device.device_kind.lower()
        return "tpu" if "tpu" in kind else "gpu" if "nvidia" in kind else "cpu"
    return jax.default_backend()


def splash_block(T: int, window: int | None) -> int:
    """Side of a tile of scores for rows, or shares of rows, of `T` tokens; no wider than a window
    that there is."""
    return next(b for b in SPLASH_BLOCKS if T % b == 0 and b <= max(window or b, SPLASH_TILE))


def computed_tiles(T: int, block: int, *, causal: bool, window: int | None) -> tuple[int, int]:
    """Tiles of a row's `T x T` scores in which splash finds a pair that the mask shows, and all
    tiles; it passes over the others."""
    tiles = T // block
    apart = np.subtract.outer(np.arange(tiles), np.arange(tiles))  # of a query's tile from a key's
    nearest = np.maximum(np.abs(apart) * block - (block - 1), 0)  # of their tokens
    seen = nearest < (window or T)
    return int((seen & (apart >= 0) if causal else seen).sum()), tiles**2


def _splash(
    q, k, v, segments, *, causal: bool, window: int | None, scale: float, softcap: float | None
) -> jax.Array:
    """Splash attention (jax.experimental.pallas.ops.tpu) per device under `shard_map`; heads, rows
    and queries split.

    The kernel takes its share of the mask's description with its share of the queries, whose keys
    are all there.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = q.shape[1]
    shards = num_shards("tokens", T)
    block = splash_block(T // shards, window)
    mask: masks.Mask
    if window is not None:
        mask = masks.LocalMask((T, T), (window - 1, 0 if causal else window - 1), 0)
    elif causal:
        mask = masks.CausalMask((T, T))
    else:
        # The same for any share of the queries; the kernel cannot split a mask without a border.
        mask, shards = masks.FullMask((T // shards, T)), 1
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)

    def make(heads: int) -> kernel.SplashAttentionKernel:
        many = masks.MultiHeadMask([mask] * heads)
        return kernel.make_splash_mha(
            many,
            head_shards=1,
            q_seq_shards=shards,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=ATTENTION_NAME,
            block_sizes=kernel.BlockSizes(**dict.fromkeys(SPLASH_SIDES, block)),
        )

    def local(q, k, v, segments, key_segments, mha):
        ids = kernel.SegmentIds(segments, key_segments)
        with jax.named_scope(TILES.format(*computed_tiles(T, block, causal=causal, window=window))):
            out = jax.vmap(mha)(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), ids)
        return out.swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, segments, segments, make(q.shape[2]))
    keys = fitted_spec(("rows", None, "kv_heads", None), k.shape, mesh)
    tokens = fitted_spec(("tokens",), (T,), mesh)[0]
    queries = PartitionSpec(keys[0], tokens, keys[2], None)
    mha = make(q.shape[2] // (num_shards("kv_heads", k.shape[2]) if keys[2] else 1))
    mask_spec = mha.manual_sharding_spec(
        NamedSharding(mesh, PartitionSpec(None, tokens if shards > 1 else None))
    )
    return jax.shard_map(
        local,
        mesh=mesh,
        out_specs=queries,
        check_vma=False,
        in_specs=(
            queries,
            keys,
            keys,
            PartitionSpec(keys[0], tokens),
            PartitionSpec(keys[0], None),
            mask_spec,
        ),
    )(q, k, v, segments, segments, mha)
