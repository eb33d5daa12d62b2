"""The TPU's kernel for one decoded token per row (see `decode_attention`), in Pallas.

JAX's own kernels for this (`paged_attention`, `ragged_paged_attention`) take keys in pages of
tokens, `[K, pages, page, H]`, and int8 scales widened to the head dimension in float32. This cache
holds keys `[B K H S]`, so that a decoded token's products run along memory on the CPU and a record
is inserted without a transposition; a transposed copy of a layer for each token would read and
write what the kernel saves. This kernel takes the blocks `[K, H, block]` of keys and `[K, block,
H]` of values as they lie. It needs no table of pages either, because a row's slots are contiguous.

The grid is a list of the valid blocks of all rows, its length known on the device alone: no step is
spent on what lies behind a row's length, and the blocks of the next row are fetched while the last
ones of a row are computed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from grit_jax.models.kernels import MASKED, soft_cap

NAME = "decode_attention"  # of the kernel in a program
LANES = 128  # a block's keys are a multiple of it
# Bytes of a block of keys, and of one of values. Two of each are in the chip's vector memory: one
# that is computed and one that is fetched. Smaller ones cost more steps, larger ones are read in
# vain behind a row's length.
BLOCK_BYTES = 1 << 20
LARGEST_BLOCK = 512


def block_size(kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Keys of a block: the same for any capacity, so that sums have the same order."""
    fitting = BLOCK_BYTES // (kv_heads * head_dim * itemsize)
    return max(LANES, min(LARGEST_BLOCK, fitting // LANES * LANES))


def takes(k: Float[Array, "L B K H S"]) -> bool:
    """Whether the kernel takes this cache: heads of a multiple of 128, a capacity of a multiple of
    a block's keys."""
    _, _, K, H, S = k.shape
    return H % LANES == 0 and S % block_size(K // _parts(K), H, k.dtype.itemsize) == 0


def _parts(kv_heads: int) -> int:
    """The parts that key/value heads are split into: one for each core of a chip (v4, v5p)."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    cores = getattr(device or jax.devices()[0], "num_cores", None) or 1
    return cores if kv_heads % cores == 0 else 1


def work_list(
    lengths: Int[Array, " B"], slots: int, block: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, ""]]:
    """The row and the number of each valid block, row by row, and how many there are; an empty row
    has one, to write its result. What comes behind them is not used."""
    blocks = jnp.maximum(1, -(-jnp.minimum(lengths, slots) // block))
    ends = jnp.cumsum(blocks)
    places = jnp.arange(len(lengths) * -(-slots // block))
    row = jnp.minimum((places[:, None] >= ends[None, :]).sum(axis=1), len(lengths) - 1)
    number = places - (ends - blocks)[row]
    return row.astype(jnp.int32), number.astype(jnp.int32), ends[-1].astype(jnp.int32)


def decode_kernel(
    q: Float[Array, "B K G H"],
    own: tuple[Float[Array, "B K H"], Float[Array, "B K H"]] | None,
    stacks: tuple[Array, Array, Array | None, Array | None],
    lengths: Int[Array, " B"],
    layer: Int[Array, ""],
    *,
    softcap: float | None,
) -> Float[Array, "B K G H"]:
    """Attention of scaled queries to one layer of a cache and, beside it, to the decoded token.

    Args:
      own: rotated key and value of that token.
      stacks: keys, values and their scales, as in `decode_attention.DecodeCache`.
      layer: which of the cache's.
    """
    k, v, k_scale, v_scale = stacks
    (_, K, G, H), S = q.shape, v.shape[3]
    parts = _parts(K)
    heads = K // parts
    block = block_size(heads, H, k.dtype.itemsize)
    rows, numbers, total = work_list(lengths, S, block)

    by_row = lambda *sizes: pl.BlockSpec(
        (None, heads, *sizes), lambda part, i, layer, rows, *_: (rows[i], part, 0, 0)
    )

    at_keys = pl.BlockSpec(
        (None, None, heads, H, block),
        lambda part, i, layer, rows, numbers, _: (layer[0], rows[i], part, 0, numbers[i]),
    )
    at_values = pl.BlockSpec(
        (None, None, heads, block, H),
        lambda part, i, layer, rows, numbers, _: (layer[0], rows[i], part, numbers[i], 0),
    )
    arrays, specs = [q], [by_row(G, H)]
    if k_scale is not None:
        arrays.append((q * k_scale[layer][:, :, None]).astype(q.dtype))
        specs.append(by_row(G, H))
    if own is not None:
        arrays += [x[:, :, None] for x in own]
        specs += [by_row(1, H)] * 2
    arrays += [k, v]
    specs += [at_keys, at_values]
    if v_scale is not None:
        # The kernel takes a share of the heads along an axis that is not one of the last two.
        arrays.append(v_scale[layer][:, :, None])
        specs.append(
            pl.BlockSpec(
                (None, heads, 1, block),
                lambda part, i, layer, rows, numbers, _: (rows[i], part, 0, numbers[i]),
            )
        )
    body = functools.partial(
        _block,
        block=block,
        softcap=softcap,
        with_scales=k_scale is not None,
        with_own=own is not None,
    )
    return pl.pallas_call(
        body,
        name=NAME,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(parts, total),
            in_specs=specs,
            out_specs=by_row(G, H),
            scratch_shapes=[
                pltpu.VMEM((heads, G, 1), jnp.float32),
                pltpu.VMEM((heads, G, 1), jnp.float32),
                pltpu.VMEM((heads, G, H), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(layer.reshape(1), rows, numbers, lengths.astype(jnp.int32), *arrays)


def _block(
    layer_ref, rows_ref, numbers_ref, lengths_ref, *refs, block, softcap, with_scales, with_own
):
    """One block of one row: the running softmax goes on over it."""
    del layer_ref
    refs = list(refs)
    q_ref = refs.pop(0)
    scaled_ref = refs.pop(0) if with_scales else q_ref
    own_k_ref, own_v_ref = (refs.pop(0), refs.pop(0)) if with_own else (None, None)
    k_ref, v_ref = refs.pop(0), refs.pop(0)
    v_scale_ref = refs.pop(0) if with_scales else None
    out_ref, top_ref, total_ref, sum_ref = refs
    step = pl.program_id(1)
    number, length = numbers_ref[step], lengths_ref[rows_ref[step]]
    wide = lambda x: x.astype(jnp.float32)

    @pl.when(number == 0)
    def start():
        if with_own:
            s = (wide(q_ref[...]) * wide(own_k_ref[...])).sum(axis=-1, keepdims=True)
            top_ref[...] = soft_cap(s, softcap)
            total_ref[...] = jnp.ones_like(total_ref)
            sum_ref[...] = jnp.broadcast_to(wide(own_v_ref[...]), sum_ref.shape)
        else:
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)
            sum_ref[...] = jnp.zeros_like(sum_ref)

    def product(x, y, contracted):
        """Head by head; `x` is `[K, G, ...]`."""
        numbers = (((2,), (contracted,)), ((0,), (0,)))
        narrow = y if y.dtype == x.dtype else wide(y).astype(x.dtype)
        return jax.lax.dot_general(x, narrow, numbers, preferred_element_type=jnp.float32)

    first = number * block

    @pl.when(first < length)
    def go_on():
        s = soft_cap(product(scaled_ref[...], k_ref[...], 1), softcap)
        valid = first + jax.lax.broadcasted_iota(jnp.int32, s.shape, 2) < length
        top = top_ref[...]
        new_top = jnp.maximum(top, jnp.where(valid, s, MASKED).max(axis=-1, keepdims=True))
        p = jnp.where(valid, jnp.exp(s - new_top), 0.0)
        rescale = jnp.exp(top - new_top)
        weights = p if v_scale_ref is None else p * v_scale_ref[...]
        seen = product(weights.astype(q_ref.dtype), v_ref[...], 1)
        top_ref[...] = new_top
        total_ref[...] = total_ref[...] * rescale + p.sum(axis=-1, keepdims=True)
        sum_ref[...] = sum_ref[...] * rescale + seen

    @pl.when(first + block >= length)
    def end():
        out_ref[...] = (sum_ref[...] / jnp.maximum(total_ref[...], 1e-30)).astype(out_ref.dtype)
