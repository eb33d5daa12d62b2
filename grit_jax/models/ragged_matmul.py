"""A product of rows sorted by expert with each expert's weights, and its gradients.

The TPU's compiler has a kernel for the product and for the rows' gradient, but none for the
gradient of the weights: that it makes of all rows for each of the experts, all but the expert's own
set to zero, which is as many times the work as there are experts. Here a kernel computes it on the
TPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.kernels import platform

ROW_TILES = (
    512,
    256,
    128,
)  # rows that the kernel takes at a time, of which the count must be a multiple
# of a tile's side: its sum in float32 and what is read for it fit the memory of a core (16 MiB)
TILE_BYTES = 2048
_WEIGHTS = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def grouped_product(
    x: Float[Array, "n D"], weight: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "n F"]:
    """The first `sizes[0]` rows by the first expert's weights, and so on; what rows behind the last
    give is undefined.

    On a mesh it is a device's own product, under `jax.shard_map`, its arguments varying over the
    same axes.
    """
    if platform() == "tpu" and x.shape[0] % ROW_TILES[-1] == 0:
        return _on_tpu(x, weight, sizes)
    return jax.lax.ragged_dot(x, weight, sizes)


@jax.custom_vjp
def _on_tpu(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x, weight, sizes)


def _forward(
    x: jax.Array, weight: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return jax.lax.ragged_dot(x, weight, sizes), (x, weight, sizes)


def _backward(kept: tuple[jax.Array, ...], given: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, weight, sizes = kept
    rows = jax.lax.ragged_dot(given, weight.swapaxes(1, 2), sizes)
    # The kernel leaves rows of no group as it finds the memory.
    rows = jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], rows, 0)
    return rows, weight_gradient(x, given, sizes), None


_on_tpu.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "n D"],
    given: Float[Array, "n F"],
    sizes: Int[Array, " E"],
    *,
    interpret: bool = False,
) -> Float[Array, "E D F"]:
    """`x^T given` over each expert's rows: tile by tile, those of an expert one after the other
    into one sum.

    How tiles are met is `make_group_metadata` of megablox, whose kernel this follows
    (jax: experimental/pallas/ops/tpu/megablox/gmm.py, tgmm); that one says not over which axes of a
    mesh its result varies, which `jax.shard_map` asks for.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas.ops.tpu.megablox.gmm import make_group_metadata

    (n, D), F, E = x.shape, given.shape[1], len(sizes)
    side = TILE_BYTES // x.dtype.itemsize
    m, d, f = next(tile for tile in ROW_TILES if n % tile == 0), min(D, side), min(F, side)
    everything = jnp.append(sizes, n - sizes.sum()).astype(
        jnp.int32
    )  # rows of no expert are a group, left out
    (starts, groups, tiles), steps = make_group_metadata(
        group_sizes=everything,
        m=n,
        tm=m,
        start_group=jnp.zeros((), jnp.int32),
        num_nonzero_groups=E,
    )

    def kernel(starts, groups, tiles, x, given, out, total):
        step, last = pl.program_id(2), pl.num_programs(2) - 1
        group = groups[step]

        @pl.when((step == 0) | (groups[jnp.maximum(step - 1, 0)] != group))
        def _():
            total[...] = jnp.zeros_like(total)

        row = tiles[step] * m + jax.lax.broadcasted_iota(jnp.int32, (m, 1), 0)
        own = (row >= starts[group]) & (
            row < starts[group + 1]
        )  # a tile may have rows of several experts
        left, right = (
            jnp.where(own, part[...].astype(jnp.float32), 0).astype(part.dtype)
            for part in (x, given)
        )
        total[...] += jax.lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

        @pl.when((step == last) | (groups[jnp.minimum(step + 1, last)] != group))
        def _():
            out[...] = total[...].astype(out.dtype)

    same = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=_WEIGHTS)
    return pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(same, x, given, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(F, f), pl.cdiv(D, d), steps),
            in_specs=[
                pl.BlockSpec((m, d), lambda j, i, step, starts, groups, tiles: (tiles[step], i)),
                pl.BlockSpec((m, f), lambda j, i, step, starts, groups, tiles: (tiles[step], j)),
            ],
            out_specs=pl.BlockSpec(
                (None, d, f), lambda j, i, step, starts, groups, tiles: (groups[step], i, j)
            ),
            scratch_shapes=[pltpu.VMEM((d, f), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="tgmm",
        interpret=interpret,
    )(starts, groups, tiles, x, given)
