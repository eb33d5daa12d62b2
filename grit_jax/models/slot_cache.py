"""The cache of the engine: slots that are filled from their start, each with a length of its own.

A slot holds one request: its documents' records, its prompt and its answer. Slots start and end at
different times, so each has its own cursor, and a pass reads a slot up to its length: blocks of
keys beyond the longest slot that is read are not touched, and blocks beyond a slot's own length
change none of its numbers, not even in the last bit. An answer therefore does not depend on the
requests beside it, nor on the capacity.

The slots of a mesh are split over the devices that rows are split over: `P` shares of `B / P`
slots. A pass over prompts takes one slot of each share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models.attention import finite_or_zero
from grit_jax.models.config import ModelConfig
from grit_jax.models.decode_attention import DecodeCache, OwnToken, decode_attention_layer
from grit_jax.models.kernels import MASKED, KeyValues, Queries, platform, soft_cap
from grit_jax.models.splash import splash_attention
from grit_jax.sharding import constrain, fitted_spec
from grit_jax.types import AttentionMode

KEY_BLOCK = 256  # keys of a slot that are read at a time
CAPACITY = 512  # a capacity is a multiple of it (the TPU's kernel reads so many), or one block
# Tokens around a new one that are written with it on a TPU, of keys, values and positions: whole
# tiles. For writes of a single token the TPU's compiler gives the cache a layout of its own, and
# copies all of it into the kernel's for every token.
TPU_WINDOWS = (128, 32, 128)
INT8, TINY = 127, 1e-12  # largest code, smallest scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SlotCache:
    """Rotated keys and values of `B` slots with room for `S` tokens each.

    What is not finite is stored as 0, and the slot is marked in `finite`: zero times NaN is NaN, so
    that a number left behind in a slot would reach the request that gets it next.

    Attributes:
      positions: rotary position of each token.
      lengths: tokens of each slot; what lies beyond is left over from earlier requests.
      finite: slots whose keys and values have all been finite.
      k_scale, v_scale: of int8 codes: those of a key channel are multiplied by its `k_scale`, those
        of a value by its `v_scale`.
    """

    k: Float[Array, "L B K H S"]
    v: Float[Array, "L B K S H"]
    positions: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    finite: Bool[Array, " B"]
    k_scale: Float[Array, "L B K H"] | None = None
    v_scale: Float[Array, "L B K S"] | None = None

    @property
    def slots(self) -> int:
        """The number of slots `B`."""
        return self.positions.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for."""
        return self.positions.shape[1]


@dataclasses.dataclass
class SlotRows:
    """The slots that the rows of a pass belong to, and what the pass reads of them.

    Attributes:
      caches: read one after the other.
      lengths: tokens that each row reads of each cache.
      local: for each of `P` rows the number of its slot within its share; None: row `b` is slot
        `b`.
    """

    caches: Sequence[SlotCache]
    lengths: Sequence[Int[Array, " P"]]
    local: Int[Array, " P"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Span:
    """Where a pass over prompts writes: in each share one slot, `count` tokens from `start` on (no
    tokens: that share's row is idle)."""

    local: Int[Array, " P"]
    start: Int[Array, " P"]
    count: Int[Array, " P"]


def empty_slots(
    config: ModelConfig, slots: int, capacity: int, dtype: jnp.dtype | None = None
) -> SlotCache:
    """Empty slots; of dtype int8 with scales. `capacity` is rounded up to a multiple of
    `CAPACITY`."""
    L, K, H = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    S = KEY_BLOCK if capacity <= KEY_BLOCK else -(-capacity // CAPACITY) * CAPACITY
    dtype = jnp.dtype(dtype or config.dtype)
    scales: tuple[Array | None, Array | None] = (None, None)
    if dtype == jnp.int8:
        scales = (jnp.zeros((L, slots, K, H)), jnp.zeros((L, slots, K, S)))
    return constrained(
        SlotCache(
            jnp.zeros((L, slots, K, H, S), dtype),
            jnp.zeros((L, slots, K, S, H), dtype),
            jnp.zeros((slots, S), jnp.int32),
            jnp.zeros(slots, jnp.int32),
            jnp.ones(slots, bool),
            *scales,
        )
    )


def constrained(cache: SlotCache) -> SlotCache:
    """The cache with slots split as rows are and heads as those of the activations, in every
    program alike."""
    axes = (None, "rows", "kv_heads", None, None)
    keep = lambda x: None if x is None else constrain(x, axes[: x.ndim])
    return dataclasses.replace(
        cache, **{name: keep(getattr(cache, name)) for name in ("k", "v", "k_scale", "v_scale")}
    )


def pick(x: Array, local: Int[Array, " P"], axis: int = 0) -> Array:
    """`x` `[.. B ..]` at one slot of each share, `[.. P ..]`."""
    P = len(local)
    if P == 1:
        return jax.lax.dynamic_slice_in_dim(x, local[0], 1, axis)
    shares = x.reshape(*x.shape[:axis], P, -1, *x.shape[axis + 1 :])
    one = lambda share, i: jax.lax.dynamic_index_in_dim(share, i, axis, keepdims=False)
    return jax.vmap(one, in_axes=(axis, 0), out_axes=axis)(shares, local)


def put(
    x: Array, local: Int[Array, " P"], values: Array, where: Bool[Array, " P"] | bool = True
) -> Array:
    """`x` `[B]` with `values` `[P]` at one slot of each share, where `where` holds."""
    shares = x.reshape(len(local), -1)
    chosen = jnp.arange(shares.shape[1]) == local[:, None]
    chosen &= jnp.broadcast_to(jnp.asarray(where), local.shape)[:, None]
    return jnp.where(chosen, values.astype(x.dtype)[:, None], shares).reshape(x.shape)


def append(
    cache: SlotCache,
    k: Float[Array, "L B K H"],
    v: Float[Array, "L B K H"],
    positions: Int[Array, " B"],
    grows: Bool[Array, " B"],
) -> SlotCache:
    """One token more in each slot that grows. The caller ensures that there is room."""
    finite = jnp.isfinite(k).all(axis=(0, 2, 3)) & jnp.isfinite(v).all(axis=(0, 2, 3))
    at = jnp.minimum(cache.lengths, cache.capacity - 1)
    whole = (cache.k, cache.v, cache.positions[None])
    new = (
        finite_or_zero(k).astype(cache.k.dtype)[..., None],
        finite_or_zero(v).astype(cache.v.dtype)[..., None, :],
        positions.astype(jnp.int32)[None, :, None],
    )
    token_axes = (4, 3, 2)
    windows = TPU_WINDOWS if platform() == "tpu" else (1, 1, 1)

    def write(
        whole: tuple[Array, ...], new: tuple[Array, ...], at: Array, grows: Array
    ) -> tuple[Array, ...]:
        return tuple(
            _append(*arrays, at, grows)
            for arrays in zip(whole, new, token_axes, windows, strict=True)
        )

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:  # each device writes to its own slots and heads
        axes = (None, "rows", "kv_heads"), (None, "rows", "kv_heads"), (None, "rows")
        spec = lambda arrays: tuple(
            fitted_spec(names, x.shape, mesh) for names, x in zip(axes, arrays, strict=True)
        )
        specs, parts = spec(whole), spec(new)
        slots = fitted_spec(("rows",), at.shape, mesh)
        write = jax.shard_map(
            write,
            mesh=mesh,
            in_specs=(specs, parts, slots, slots),
            out_specs=specs,
            check_vma=False,
        )
    whole_k, whole_v, whole_positions = write(whole, new, at, grows)
    return dataclasses.replace(
        cache,
        k=whole_k,
        v=whole_v,
        positions=whole_positions[0],
        lengths=cache.lengths + grows,
        finite=cache.finite & (finite | ~grows),
    )


def _append(
    whole: Array,
    new: Array,
    token_axis: int,
    window: int,
    at: Int[Array, " B"],
    grows: Bool[Array, " B"],
) -> Array:
    """`append` to one array `[L B ..]`, slot by slot, in place (XLA's CPU backend takes several
    times as long for a scatter). The `window` tokens around a new one are read and written back."""
    for b in range(len(at)):
        start = at[b] // window * window
        begin: list[Any] = [0, b] + [0] * (whole.ndim - 2)
        begin[token_axis] = start
        sizes = [whole.shape[0], 1, *whole.shape[2:]]
        sizes[token_axis] = window
        index = start + jnp.arange(window)
        # A slot that does not grow may be between two chunks of its prompt: nothing changes.
        here = ((index == at[b]) & grows[b]).reshape(
            [window if axis == token_axis else 1 for axis in range(whole.ndim)]
        )
        old = jax.lax.dynamic_slice(whole, begin, sizes)
        whole = jax.lax.dynamic_update_slice(whole, jnp.where(here, new[:, b : b + 1], old), begin)
    return whole


def write_span(
    cache: SlotCache,
    k: Float[Array, "L P K H T"],
    v: Float[Array, "L P K T H"],
    span: Span,
    first_layer: Int[Array, ""] | int = 0,
) -> SlotCache:
    """Writes the first `span.count` of `T` tokens into `L` layers of one slot of each share.

    The rest of the `T` tokens is padding and is not written: what is in the slots is read, changed
    and written back, so that a write close to the end of a slot stays where it belongs.
    """
    k, v = finite_or_zero(k), finite_or_zero(v)
    codes = cache.k_scale is not None
    if codes:
        # One scale for each channel of the record and one for each value, as they are read.
        valid = jnp.arange(k.shape[-1]) < span.count[:, None]
        k = jnp.where(valid[None, :, None, None, :], k, 0)
        k_scale = jnp.maximum(jnp.abs(k).max(-1) / INT8, TINY)
        v_scale = jnp.maximum(jnp.abs(v).max(-1) / INT8, TINY)
        k, v = jnp.round(k / k_scale[..., None]), jnp.round(v / v_scale[..., None])
    replaced = {
        "k": _write(cache.k, k, span, first_layer, token_axis=4),
        "v": _write(cache.v, v, span, first_layer, token_axis=3),
    }
    if codes:
        replaced["v_scale"] = _write(cache.v_scale, v_scale, span, first_layer, token_axis=3)
        replaced["k_scale"] = _write(cache.k_scale, k_scale, span, first_layer, token_axis=None)
    return dataclasses.replace(cache, **replaced)


def mark_span(
    cache: SlotCache,
    positions: Int[Array, "P T"],
    span: Span,
    finite: Bool[Array, " P"] | None = None,
) -> SlotCache:
    """Sets positions and lengths of the slots that a span was written to.

    Args:
      finite: whether the span's keys and values are; None: they are looked at elsewhere. A span
        from the start of a slot begins a new request.
    """
    active = span.count > 0
    whole = _write(cache.positions[None], positions[None], span, 0, token_axis=2)[0]
    before = pick(cache.finite, span.local) | (span.start == 0)
    return dataclasses.replace(
        cache,
        positions=whole,
        lengths=put(cache.lengths, span.local, span.start + span.count, active),
        finite=put(cache.finite, span.local, before if finite is None else before & finite, active),
    )


def _write(
    whole: Array,
    part: Array,
    span: Span,
    first_layer: Int[Array, ""] | int,
    token_axis: int | None,
) -> Array:
    """`write_span` of one array `[L B ...]`, whose tokens are along `token_axis` (None: the array
    has none, and a slot's entry is replaced)."""
    P = len(span.local)
    part = part.astype(whole.dtype)

    def share(
        whole: Array, part: Array, local: Array, start: Array, count: Array
    ) -> Array:  # whole [L B/P ...], part [l ...]
        part = part[:, None]
        begin = [jnp.asarray(first_layer), local, *[0] * (whole.ndim - 2)]
        keep: Array = count > 0
        if token_axis is not None:
            S, T = whole.shape[token_axis], part.shape[token_axis]
            at = jnp.minimum(start, S - T)
            # Near the end of a slot the window begins earlier, and the part is moved up within it.
            part = jnp.roll(part, start - at, token_axis)
            index = at + jnp.arange(T) - start
            keep = ((index >= 0) & (index < count)).reshape(
                [T if axis == token_axis else 1 for axis in range(whole.ndim)]
            )
            begin[token_axis] = at
        old = jax.lax.dynamic_slice(whole, begin, part.shape)
        return jax.lax.dynamic_update_slice(whole, jnp.where(keep, part, old), begin)

    if P == 1:
        return share(whole, part[:, 0], span.local[0], span.start[0], span.count[0])
    shares = whole.reshape(whole.shape[0], P, -1, *whole.shape[2:])
    written = jax.vmap(share, in_axes=(1, 1, 0, 0, 0), out_axes=1)(
        shares, part, span.local, span.start, span.count
    )
    return written.reshape(whole.shape)


def slot_attention(
    q: Float[Array, "B T N H"],
    own: KeyValues,
    rows: SlotRows,
    layer: Int[Array, ""],
    *,
    mode: AttentionMode,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of `T` tokens to themselves and to what their slots hold, with a running softmax.

    The slots are read where they lie, block by block up to the longest length that a row reads; on
    TPU, for as many tokens as splash attention takes, whole and beside the tokens' own keys.

    Args:
      q: rotated queries; they share `own.positions` and `own.segments` (1, or 0 for padding).
      own: keys of the same tokens, in the axis order of a pass.
      layer: whose keys and values are read.
      mode: causal, or bidirectional among the tokens themselves.
      window: see `attention.attend`. Positions count the tokens of a slot, so that one wider than
        what the slots and the pass have room for hides nothing.
    """
    B, T, N, H = q.shape
    if window is not None and window >= T + sum(cache.capacity for cache in rows.caches):
        window = None
    scale = H**-0.5 if scale is None else scale
    if T == 1 and rows.local is None and len(rows.caches) == 1 and window is None:
        [cache], [lengths] = rows.caches, rows.lengths
        out = decode_attention_layer(
            q[:, 0],
            OwnToken(own.k[:, 0], own.v[:, 0]),
            DecodeCache(cache.k, cache.v, lengths, cache.k_scale, cache.v_scale),
            layer,
            scale=scale,
            softcap=softcap,
        )
        return out[:, None]
    causal = mode is not AttentionMode.BIDIRECTIONAL
    if platform() == "tpu":
        fused = splash_attention(
            Queries(q, own.positions, own.segments),
            dataclasses.replace(own, causal=causal),
            _whole_slots(rows, layer),
            window=window,
            symmetric_window=not causal,
            scale=scale,
            softcap=softcap,
        )
        if fused is not None:
            return fused
    K = own.k.shape[2]
    G = N // K
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    positions = own.positions

    def in_window(key_positions: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
        assert window is not None
        distance = positions[:, :, None] - key_positions[:, None, :]
        return (distance if causal else jnp.abs(distance)) < window

    def bent(s: jax.Array, mask: Bool[Array, "B _ S"]) -> Float[Array, "B K x S"]:
        s = soft_cap(s, softcap).reshape(B, K, G, T, -1)
        return jnp.where(mask[:, None, None], s, MASKED).reshape(B, K, G * T, -1)

    product = lambda form, a, b: jnp.einsum(form, a, b, preferred_element_type=jnp.float32)

    mask = own.segments[:, :, None] == own.segments[:, None, :]
    if causal:
        mask &= (jnp.arange(T)[:, None] >= jnp.arange(T))[None]
    if window is not None:
        mask &= in_window(positions)
    s = bent(product("bkxh,btkh->bkxt", q, own.k.astype(q.dtype)), mask)
    top = s.max(-1)
    p = jnp.exp(s - top[..., None])
    out = product("bkxt,btkh->bkxh", p.astype(q.dtype), own.v.astype(q.dtype))
    state = (top, p.sum(-1), out)

    for cache, lengths in zip(rows.caches, rows.lengths, strict=True):

        def step(j: Array, state: tuple, cache: SlotCache = cache, lengths: Array = lengths):
            top, total, out = state
            block = _block(cache, layer, rows.local, j * KEY_BLOCK)
            scaled = q if block.k_scale is None else q * block.k_scale[:, :, None]
            mask = (j * KEY_BLOCK + jnp.arange(KEY_BLOCK) < lengths[:, None])[:, None]
            if window is not None:
                mask = mask & in_window(block.positions)
            s = bent(
                product("bkxh,bkhs->bkxs", scaled.astype(q.dtype), block.k.astype(q.dtype)), mask
            )
            new_top = jnp.maximum(top, s.max(-1))
            p = jnp.exp(s - new_top[..., None])
            rescale = jnp.exp(top - new_top)
            total = total * rescale + p.sum(-1)
            p = p if block.v_scale is None else p * block.v_scale[:, :, None]
            values = product("bkxs,bksh->bkxh", p.astype(q.dtype), block.v.astype(q.dtype))
            return new_top, total, out * rescale[..., None] + values

        blocks = (jnp.max(lengths) + KEY_BLOCK - 1) // KEY_BLOCK
        state = jax.lax.fori_loop(0, blocks, step, state)
    out = state[2] / state[1][..., None]
    return out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)


def _whole_slots(rows: SlotRows, layer: Int[Array, ""]) -> list[KeyValues]:
    """A layer of the slots of a pass: segment 1 up to their lengths, and 0 beyond."""
    groups = []
    for cache, lengths in zip(rows.caches, rows.lengths, strict=True):
        keys = _block(cache, layer, rows.local, jnp.zeros((), jnp.int32), cache.capacity)
        segments = (jnp.arange(cache.capacity) < lengths[:, None]).astype(jnp.int32)
        groups.append(dataclasses.replace(keys, segments=segments))
    return groups


def _block(
    cache: SlotCache,
    layer: Int[Array, ""],
    local: Int[Array, " P"] | None,
    start: Int[Array, ""],
    size: int = KEY_BLOCK,
) -> KeyValues:
    """`size` tokens of a layer, from `start` on, of all slots or of one slot of each share."""

    def read(whole: Array | None, token_axis: int | None, by_layer: bool = True) -> Array | None:
        if whole is None:
            return None
        whole = whole if by_layer else whole[None]
        begin = [layer if by_layer else 0, *[0] * (whole.ndim - 1)]
        sizes = [1, *whole.shape[1:]]
        if token_axis is not None:
            begin[token_axis], sizes[token_axis] = start, size
        if local is None:
            return jax.lax.dynamic_slice(whole, begin, sizes)[0]
        P, sizes[1] = len(local), 1
        if P == 1:
            return jax.lax.dynamic_slice(whole, [begin[0], local[0], *begin[2:]], sizes)[0]
        shares = whole.reshape(whole.shape[0], P, -1, *whole.shape[2:])
        one = lambda share, i: jax.lax.dynamic_slice(share, [begin[0], i, *begin[2:]], sizes)[0, 0]
        return jax.vmap(one, in_axes=(1, 0))(shares, local)

    k, v, positions = read(cache.k, 4), read(cache.v, 3), read(cache.positions, 2, by_layer=False)
    assert k is not None and v is not None and positions is not None
    if platform() == "tpu":
        # Left to itself, the compiler reads blocks from a transposed copy of the whole cache.
        layout = Layout(major_to_minor=(0, 1, 2, 3))
        k, v = (with_layout_constraint(x, layout) for x in (k, v))
    return KeyValues(
        k,
        v,
        positions,
        positions,
        by_head=True,
        k_scale=read(cache.k_scale, None),
        v_scale=read(cache.v_scale, 3),
    )
