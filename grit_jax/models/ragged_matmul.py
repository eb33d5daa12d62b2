"""The product of rows sorted by expert with each expert's weights (ragged dot), and its gradients.

XLA for TPU has a kernel for the product and for the rows' gradient, but not for the weights'
gradient: it multiplies all rows for each expert, with the rows of other experts set to zero, which
is E times the work. This module has a Pallas kernel for it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.kernels import platform

# Rows that the kernel processes at a time: the largest that divides the number of rows.
ROW_TILES = (512, 256, 128)
# Of a tile's side: its float32 sum and its operands fit the memory of a core (16 MiB).
TILE_BYTES = 2048
_WEIGHTS = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def grouped_product(
    x: Float[Array, "n D"], weight: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "n F"]:
    """Multiplies the first `sizes[0]` rows by the first expert's weights, and so on.

    Results of rows beyond `sizes.sum()` are undefined. On a mesh, call it under `jax.shard_map`,
    with arguments that vary over the same axes.
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


def _backward(
    saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, weight, sizes = saved
    rows = jax.lax.ragged_dot(gradient, weight.swapaxes(1, 2), sizes)
    # The kernel does not write rows that belong to no expert.
    rows = jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], rows, 0)
    return rows, weight_gradient(x, gradient, sizes), None


_on_tpu.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "n D"],
    gradient: Float[Array, "n F"],
    sizes: Int[Array, " E"],
    *,
    interpret: bool = False,
) -> Float[Array, "E D F"]:
    """`x^T gradient` over each expert's rows, summed tile by tile.

    Follows the kernel `tgmm` of megablox (jax: experimental/pallas/ops/tpu/megablox/gmm.py) and
    visits tiles in the order of its `make_group_metadata`. Megablox's own does not declare the mesh
    axes over which its result varies, which `jax.shard_map` requires.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas.ops.tpu.megablox.gmm import make_group_metadata

    (n, D), F, E = x.shape, gradient.shape[1], len(sizes)
    side = TILE_BYTES // x.dtype.itemsize
    m, d, f = next(tile for tile in ROW_TILES if n % tile == 0), min(D, side), min(F, side)
    # Rows of no expert are one more group, which is not visited.
    all_sizes = jnp.append(sizes, n - sizes.sum()).astype(jnp.int32)
    (starts, groups, tiles), steps = make_group_metadata(
        group_sizes=all_sizes,
        m=n,
        tm=m,
        start_group=jnp.zeros((), jnp.int32),
        num_nonzero_groups=E,
    )

    def kernel(starts, groups, tiles, x, gradient, out, total):
        step, last = pl.program_id(2), pl.num_programs(2) - 1
        group = groups[step]

        @pl.when((step == 0) | (groups[jnp.maximum(step - 1, 0)] != group))
        def _():
            total[...] = jnp.zeros_like(total)

        row = tiles[step] * m + jax.lax.broadcasted_iota(jnp.int32, (m, 1), 0)
        # A tile may have rows of several experts.
        own = (row >= starts[group]) & (row < starts[group + 1])
        left, right = (
            jnp.where(own, part[...].astype(jnp.float32), 0).astype(part.dtype)
            for part in (x, gradient)
        )
        total[...] += jax.lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

        @pl.when((step == last) | (groups[jnp.minimum(step + 1, last)] != group))
        def _():
            out[...] = total[...].astype(out.dtype)

    reference = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=_WEIGHTS)
    return pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(reference, x, gradient, sizes),
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
    )(starts, groups, tiles, x, gradient)
