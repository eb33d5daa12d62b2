"""The small pieces of a layer: RMS norm, the products with weights, gated feed-forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from grit_jax.models.adapter_stack import AdapterStack
from grit_jax.models.int8 import Int8Table, blocked_product, in_blocks
from grit_jax.models.kernels import platform
from grit_jax.models.lora import AdaptedWeight
from grit_jax.models.quantise import Int8Weight, Quantised
from grit_jax.models.ragged_matmul import grouped_product
from grit_jax.sharding import num_shards

PRODUCT_NAME = "product"  # of a layer's products with weights, to be kept for the backward pass

# Products with narrower weights (LoRA's factors) gain nothing from bfloat16 on a CPU.
NARROWEST = 64

# Weights by name: of one layer, or those outside the layers. A matrix may be quantised or adapted.
Weights = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float, *, zero_centered: bool = False
) -> Float[Array, "... D"]:
    """Root-mean-square norm in float32, returned in the dtype of `x` (transformers'
    MistralRMSNorm).

    Args:
      zero_centered: multiply by `1 + weight` (Gemma).
    """
    x32, w32 = x.astype(jnp.float32), weight.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale * (1 + w32 if zero_centered else w32)).astype(x.dtype)


def gated_mlp(
    x: Float[Array, "B T D"], layer: Weights, activation: str = "silu"
) -> Float[Array, "B T D"]:
    """Gated feed-forward: `(activation(x gate) * (x up)) down`."""
    return linear(
        ACTIVATIONS[activation](linear(x, layer, "gate")) * linear(x, layer, "up"), layer, "down"
    )


def linear(
    x: Float[Array, "... D"],
    weights: Weights,
    name: str,
    group_sizes: Int[Array, " E"] | None = None,
) -> Float[Array, "... F"]:
    """`x @ weights[name]`, plus `weights[name + "_bias"]` where there is one: the one way through a
    weight matrix.

    Computed in the dtype of `x`, as one matrix product over all tokens: XLA's CPU backend runs the
    backward pass of the flat product 2.7 times as fast as that of the batched one.

    Args:
      group_sizes: for the weights of experts `[E D F]`: the rows of `x` `[n D]`, sorted by expert,
        that each one gets.
    """
    weight = weights[name]
    if isinstance(weight, AdaptedWeight):
        inside = _product(weight.drop(x), weight.a, group_sizes)
        out = _product(x, weight.base, group_sizes) + weight.scale * _product(
            inside, weight.b, group_sizes
        )
    elif isinstance(weight, AdapterStack):
        inside = weight.own(_product(x, weight.a, None))
        out = _product(x, weight.base, None) + _product(inside, weight.b, None)
    else:
        out = _product(x, weight, group_sizes)
    bias = weights.get(name + "_bias")
    out = out if bias is None else out + bias.astype(x.dtype)
    # Experts' products are computed again: rows are many, as each token has several experts.
    return out if group_sizes is not None else checkpoint_name(out, PRODUCT_NAME)


def token_embeddings(
    tokens: Int[Array, "B T"], weights: Weights, dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """Rows of the embedding table, cast after the gather: the table as a whole is never cast."""
    table = weights["embed"]
    if isinstance(table, Int8Table):
        return table.lookup(tokens, dtype)
    return jnp.asarray(table)[tokens].astype(dtype)


def vocabulary_logits(hidden: Float[Array, "... D"], weights: Weights) -> Float[Array, "... V"]:
    """Logits in float32, by the head or, where there is none, by the embedding table."""
    head = weights["head"] if "head" in weights else weights["embed"]
    if isinstance(head, Int8Weight | Int8Table):
        return _int8_logits(hidden, head)
    head = head if "head" in weights else head.T
    return jnp.einsum(
        "...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def _product(
    x: Float[Array, "... D"],
    weight: Float[Array, "D F"] | Quantised,
    group_sizes: Int[Array, " E"] | None,
) -> Float[Array, "... F"]:
    """`x @ weight` in the dtype of `x`; see `linear`."""
    if isinstance(weight, Int8Weight):
        # Differentiated (under an adapter), the converted codes would be kept for the backward
        # pass.
        return jax.checkpoint(lambda x, weight: _int8_product(x, weight, group_sizes))(x, weight)
    if isinstance(weight, Quantised):
        # Dequantised again in the backward pass, or the plain weights of all layers would be kept
        # for it.
        return jax.checkpoint(
            lambda x, weight: _product(x, weight.dequantise(x.dtype), group_sizes)
        )(x, weight)
    weight = weight.astype(x.dtype)
    if group_sizes is not None:
        return grouped_product(x, weight, group_sizes)
    return product(x, weight)


def _int8_product(
    x: Float[Array, "... D"], weight: Int8Weight, group_sizes: Int[Array, " E"] | None
) -> Float[Array, "... F"]:
    """`x @ weight`: the product with the codes, scaled."""
    if group_sizes is not None:
        out = grouped_product(x, weight.codes.astype(x.dtype), group_sizes)
        # The scales of the expert that each row belongs to.
        scales = jnp.repeat(
            weight.scales[:, 0], group_sizes, axis=0, total_repeat_length=x.shape[0]
        )
    else:
        scales = weight.scales[0]
        if in_blocks(x):
            out = blocked_product(x, weight.codes)
        else:
            out = product(x, weight.codes.astype(x.dtype))
    return (out.astype(jnp.float32) * scales).astype(x.dtype)


def _int8_logits(
    hidden: Float[Array, "... D"], head: Int8Weight | Int8Table
) -> Float[Array, "... V"]:
    """Logits in float32 by a quantised head `[D V]` or embedding table `[V D]`."""
    table = isinstance(head, Int8Table)
    if in_blocks(hidden):
        out = blocked_product(hidden, head.codes, transposed=table)
    else:
        out = jnp.einsum(
            "...d,vd->...v" if table else "...d,dv->...v",
            hidden,
            head.codes.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
    return out * head.scales.reshape(-1)


def product(
    x: Float[Array, "... D"], weight: Float[Array, "D F"], dtype: Any = None
) -> Float[Array, "... F"]:
    """`x @ weight` (its result in `dtype`, if one is given): over all tokens at once, or row by row
    where the tokens of a row are split over devices, as one axis of all tokens could not be.

    A CPU multiplies bfloat16 numbers faster than float32 ones only where their sums stay in
    float32, which XLA's CPU backend does not choose by itself (up to 2 times as fast, against half
    as fast): so products of bfloat16 numbers are written that way there. With
    `jax.default_matmul_precision("bfloat16")` float32 numbers are rounded for it, as TPUs do.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    rounded = precision == "bfloat16"
    narrow = (x.dtype == jnp.bfloat16 or rounded) and platform() == "cpu"
    if x.ndim == 3 and num_shards("tokens", x.shape[1]) > 1:
        return jnp.matmul(x, weight, preferred_element_type=dtype)
    flat = x.reshape(-1, x.shape[-1])
    if narrow and min(weight.shape) >= NARROWEST:
        out = _bfloat16_product(flat, weight).astype(dtype or x.dtype)
    else:
        out = jnp.matmul(flat, weight, preferred_element_type=dtype)
    return out.reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def _bfloat16_product(x: Float[Array, "n D"], weight: Float[Array, "D F"]) -> Float[Array, "n F"]:
    """`x @ weight` in float32, the operands rounded to bfloat16, in the backward pass too."""
    rows = x.shape[0]
    # Of less than four rows the product runs at an eighth of the speed.
    x = jnp.pad(x, ((0, max(0, 4 - rows)), (0, 0)))
    return _sum_in_float32(x, weight, (1, 0))[:rows]


def _sum_in_float32(
    x: Float[Array, ...], y: Float[Array, ...], contracted: tuple[int, int]
) -> Float[Array, ...]:
    return jax.lax.dot_general(
        x.astype(jnp.bfloat16),
        y.astype(jnp.bfloat16),
        (((contracted[0],), (contracted[1],)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _product_and_operands(x, weight):
    return _bfloat16_product(x, weight), (x, weight)


def _gradients_of_product(operands, gradient):
    x, weight = operands
    return (
        _sum_in_float32(gradient, weight, (1, 1)).astype(x.dtype),
        _sum_in_float32(x, gradient, (0, 0)).astype(weight.dtype),
    )


_bfloat16_product.defvjp(_product_and_operands, _gradients_of_product)
