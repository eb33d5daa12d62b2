"""cuDNN's fused attention, the kernel on GPU (`jax.nn.dot_product_attention`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from grit_jax.models.kernels import ATTENTION_NAME, KeyValues, Queries, key_mask
from grit_jax.sharding import num_shards

WIDEST_HEAD = 128  # of the kernels for training, on every card that has them
IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"


def cudnn_attention(
    queries: Queries,
    own: KeyValues,
    cached: Sequence[KeyValues] = (),
    *,
    window: int | None,
    symmetric_window: bool,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"] | None:
    """Attention to cached keys and to own ones in one call, or None where cuDNN does not take them.

    It takes bfloat16 and float16, heads of a multiple of 8 up to 128, an even number of queries
    (its backward pass under a mask; keys are padded to one), no soft cap, and rows that are whole
    on a device. What a query sees is a mask over all keys, so that windows, prefix blocks and
    segments are those of the blocked path; int8 keys and values are dequantised. Without cached
    keys and window the mask holds segments alone, and the kernel passes over the later keys.
    """
    q, (T, H) = queries.q, queries.q.shape[1::2]
    if (
        q.dtype not in (jnp.bfloat16, jnp.float16)
        or H % 8
        or H > WIDEST_HEAD
        or T % 2
        or softcap is not None
        or num_shards("tokens", T) > 1
    ):
        return None
    simple = not cached and window is None and own.blocks is None
    if simple:
        mask = queries.segments[:, :, None] == own.segments[:, None, :]
    else:
        hidden = {"window": window, "symmetric_window": symmetric_window}
        mask = jnp.concatenate(
            [key_mask(queries, keys, **hidden) for keys in [*cached, own]], axis=2
        )
    k, v = own.k, own.v
    if cached:
        groups = [keys.dequantised(q.dtype) for keys in cached]
        k = jnp.concatenate([*(k.transpose(0, 3, 1, 2) for k, _ in groups), k], axis=1)
        v = jnp.concatenate([*(v.swapaxes(1, 2) for _, v in groups), v], axis=1)
    if k.shape[1] % 2:
        k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 1)))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask[:, None],
        scale=scale,
        is_causal=simple and own.causal,
        implementation=IMPLEMENTATION,
    )
    return checkpoint_name(out, ATTENTION_NAME)
