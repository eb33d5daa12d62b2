"""Splash attention (jax: experimental/pallas/ops/tpu/splash_attention), the fused kernel on TPU.

Cached keys come before a row's own keys in one call. The mask over slots is then that of a row
without cache, shifted by the number of cached keys, and segment ids say which keys a query sees of
those. Masks that slots do not express are read from memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from grit_jax.models.kernels import ATTENTION_NAME, KeyValues, Queries, key_mask
from grit_jax.sharding import fitted_spec, num_shards

TILE = 128  # splash works on multiples of this many tokens and of this many head dimensions
# Tokens of a tile of scores: the larger, the less often keys are read for them (MaxText takes 512
# on every generation; the kernel's own 128 reads more bytes a FLOP than a v5p or v6e can).
BLOCKS = (512, 384, 256, 128)
QUERY_SIDES = ("block_q", "block_q_dkv", "block_q_dq")
KEY_SIDES = (
    "block_kv",
    "block_kv_compute",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_kv_dq",
)
# The name scope of splash's kernels in a program: tiles of scores that they compute, and all tiles.
TILES = "tiles_{}_of_{}"
# Rows of fewer tokens over a cache are left to the blocked path: padded to 128, they are several
# times the products (32 tokens over 2,048 cached ones, 32 heads of 128: 4.8 GFLOP against 1.1), and
# the same bytes.
FEWEST_QUERIES = 64
NO_QUERY = -1  # the segment of keys that no query sees: those of queries are at least 0


def splash_attention(
    queries: Queries,
    own: KeyValues,
    cached: Sequence[KeyValues] = (),
    *,
    window: int | None,
    symmetric_window: bool,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"] | None:
    """Attention to own keys and to cached ones, or None where the kernel does not take them.

    It takes heads of a multiple of 128; without cached keys, rows of a multiple of 128 tokens on
    each device; with cached keys, rows of at least `FEWEST_QUERIES` tokens, which are padded to a
    multiple of 128, but where tokens are split over devices. int8 keys and values are dequantised
    as they are put beside the own ones.

    The kernel computes its mask from slots. It reads one from memory, an entry for each query and
    key, where slots do not express it: for a window over cached keys, whose positions are in any
    order, and for prefix blocks. Tokens must not be split over devices then. A window that is not
    narrower than all keys together hides nothing, since positions of a text count its tokens.
    """
    T, H = queries.q.shape[1], queries.q.shape[3]
    shards, S = num_shards("tokens", T), sum(keys.length for keys in cached)
    rest = -T % (TILE * shards)
    if H % TILE or (rest and (not cached or shards > 1)):
        return None
    if cached and T < FEWEST_QUERIES:
        return None
    if cached and window is not None and window >= S + T:
        window = None
    dense = own.blocks is not None or (bool(cached) and window is not None)
    if dense and shards > 1:
        return None
    q = (queries.q.astype(jnp.float32) * scale).astype(queries.q.dtype)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, rest)) + ((0, 0),) * (x.ndim - 2)) if rest else x
    block = key_block(S, T + rest) if cached else None
    dead = -(S + T + rest) % block if block else 0
    if dense:
        seen = _seen(queries, [*cached, own], (dead, rest), window, symmetric_window)
        mask: tuple[jax.Array, ...] = (seen,)
        window = None
    else:
        segments = pad(own.segments)
        # Empty slots are segment 0 in a cache, as padding is among the queries.
        marks = [jnp.where(keys.segments > 0, keys.segments, NO_QUERY) for keys in cached]
        marks += [jnp.full((len(segments), dead), NO_QUERY, segments.dtype)] if dead else []
        mask = (segments, jnp.concatenate([*marks, segments], axis=1) if marks else segments)
    keys_of = [keys.dequantised(q.dtype) for keys in cached]
    out = _over_devices(
        pad(q),
        (pad(own.k), pad(own.v)),
        (tuple(k for k, _ in keys_of), tuple(v for _, v in keys_of)),
        mask,
        causal=own.causal,
        window=window,
        softcap=softcap,
        block=block,
    )
    return out[:, :T] if rest else out


def _seen(
    queries: Queries,
    groups: Sequence[KeyValues],
    padding: tuple[int, int],
    window: int | None,
    symmetric_window: bool,
) -> Bool[Array, "B T S"]:
    """The mask over cached keys, so many that no query sees, own keys and so many tokens of
    padding. Each token sees itself: the kernel divides by zero for a tile of queries that see
    nothing."""
    dead, rest = padding
    masks = [
        key_mask(queries, keys, window=window, symmetric_window=symmetric_window) for keys in groups
    ]
    *before, own = masks
    own = jnp.pad(own, ((0, 0), (0, rest), (0, rest))) | jnp.eye(own.shape[1] + rest, dtype=bool)
    widths = [(0, 0)] * max(0, len(before) - 1) + [(0, dead)] * bool(before)
    before = [
        jnp.pad(mask, ((0, 0), (0, rest), width))
        for mask, width in zip(before, widths, strict=True)
    ]
    return jnp.concatenate([*before, own], axis=2)


def query_block(T: int, window: int | None) -> int:
    """Side of a tile of scores for rows, or shares of rows, of `T` tokens; no wider than a window
    that there is."""
    return next(b for b in BLOCKS if T % b == 0 and b <= max(window or b, TILE))


def key_block(cached: int, own: int) -> int:
    """The other side of a tile over cached and own keys, which are padded to a multiple of it.

    The one that takes the least time, where a tile costs as much beside its keys as another 128
    keys: a tile of 128 x 128 is smaller than what starting it costs.
    """
    return min(BLOCKS, key=lambda b: -(-(cached + own) // b) * (b + TILE))


def computed_tiles(
    T: int, S: int, sides: tuple[int, int], *, causal: bool, window: int | None
) -> tuple[int, int]:
    """Tiles of a row's `T x S` scores in which splash finds a pair that the mask shows, and all
    tiles; it passes over the others. The last `T` keys are those of the queries.

    Args:
      sides: queries and keys of a tile.
    """
    first = np.arange(T // sides[0])[:, None] * sides[0] + S - T  # its first query's own key
    keys = np.arange(S // sides[1])[None, :] * sides[1]
    near = first - (S if window is None else window - 1)
    far = first + sides[0] - 1 + (0 if causal else S if window is None else window - 1)
    return int(((keys + sides[1] - 1 >= near) & (keys <= far)).sum()), len(first) * keys.size


def _over_devices(q, own, cached, mask, *, causal, window, softcap, block) -> jax.Array:
    """The kernel on each device, under `shard_map`; heads, rows and queries are split.

    The kernel takes its share of a computed mask's description with its share of the queries, whose
    keys are all there.

    Args:
      own: keys and values `[B T K H]`.
      cached: keys `[B K H S]`, several, and values `[B K S H]`.
      mask: segments of queries and of keys, for a mask computed from slots; or the whole mask `[B T
        S]`.
      block: keys of a tile, None for as many as queries.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, S, dense = q.shape[1], mask[-1].shape[-1], len(mask) == 1
    shards = num_shards("tokens", T)
    side = query_block(T // shards, window)
    sides = (side, block or side)
    slots: masks.Mask
    if window is not None:
        slots = masks.LocalMask((T, S), (window - 1, 0 if causal else window - 1), S - T)
    elif causal:
        slots = masks.CausalMask((T, S), S - T)
    else:
        # The same for any share of the queries; the kernel cannot split a mask without a border.
        slots, shards = masks.FullMask((T // shards, S)), 1

    def make(mask: masks.MultiHeadMask | jax.Array) -> kernel.SplashAttentionKernel:
        return kernel.make_splash_mha(
            mask,
            head_shards=1,
            q_seq_shards=shards,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=ATTENTION_NAME,
            block_sizes=kernel.BlockSizes(
                **dict.fromkeys(QUERY_SIDES, sides[0]), **dict.fromkeys(KEY_SIDES, sides[1])
            ),
        )

    def side_by_side(own, cached):
        """Keys and values `[B K S H]`, the cached ones first."""
        k, v = (x.swapaxes(1, 2) for x in own)
        if not cached[0]:
            return k, v
        rest = S - T - sum(x.shape[2] for x in cached[1])
        dead = [jnp.zeros((*k.shape[:2], rest, k.shape[3]), k.dtype)] if rest else []
        k = jnp.concatenate([*(x.swapaxes(2, 3) for x in cached[0]), *dead, k], axis=2)
        return k, jnp.concatenate([*cached[1], *dead, v], axis=2)

    def local(q, own, cached, segments, mha):
        k, v = side_by_side(own, cached)
        ids = kernel.SegmentIds(*segments)
        tiles = computed_tiles(T, S, sides, causal=causal, window=window)
        with jax.named_scope(TILES.format(*tiles)):
            out = jax.vmap(mha)(q.swapaxes(1, 2), k, v, ids)
        return out.swapaxes(1, 2)

    def local_dense(q, own, cached, seen):
        k, v = side_by_side(own, cached)

        def attend(q, k, v, seen):
            mha = make(seen[None])  # one mask for all heads
            # The kernel asks for this flag in Python, and has made an array of it.
            for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
                setattr(mha, name, getattr(mha, name)._replace(is_dynamic_mask=True))
            return mha(q, k, v)

        return jax.vmap(attend)(q.swapaxes(1, 2), k, v, seen).swapaxes(1, 2)

    mesh, heads = jax.sharding.get_abstract_mesh(), q.shape[2]
    if mesh.empty:
        if dense:
            return local_dense(q, own, cached, *mask)
        return local(q, own, cached, mask, make(masks.MultiHeadMask([slots] * heads)))
    keys = fitted_spec(("rows", None, "kv_heads", None), own[0].shape, mesh)
    by_head = jax.tree.map(lambda _: PartitionSpec(keys[0], keys[2], None, None), cached)
    tokens = fitted_spec(("tokens",), (T,), mesh)[0]
    split = PartitionSpec(keys[0], tokens, keys[2], None)
    run = functools.partial(jax.shard_map, mesh=mesh, out_specs=split, check_vma=False)
    specs = (split, (keys, keys), by_head)
    if dense:
        whole = PartitionSpec(keys[0], None, None)
        return run(local_dense, in_specs=(*specs, whole))(q, own, cached, *mask)
    heads //= num_shards("kv_heads", own[0].shape[2]) if keys[2] else 1
    mha = make(masks.MultiHeadMask([slots] * heads))
    mask_spec = mha.manual_sharding_spec(
        NamedSharding(mesh, PartitionSpec(None, tokens if shards > 1 else None))
    )
    segments = (PartitionSpec(keys[0], tokens), PartitionSpec(keys[0], None))
    return run(local, in_specs=(*specs, segments, mask_spec))(q, own, cached, mask, mha)
