"""The weights of a model: their names, shapes, logical axes, and random initial values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grit_jax.models.config import LayerKind, ModelConfig

Params = dict[str, Any]  # parameter name -> array

# Prefixes of the names of weights outside the layers, adapters included.
OUTSIDE_LAYERS = ("embed", "final_norm", "head")
# Prefixes of the names of dense feed-forward weights and of those of a mixture of experts.
DENSE, EXPERTS = ("gate", "up", "down"), ("router", "expert_")


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight; those of layers are stacked over the layers that have them
    (see `layers_with`)."""
    c = config
    L, D, F, V = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size
    NH, KH = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    sparse = sum(kind.experts for kind in c.layer_kinds)
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (V, D),
        "attention_norm": (L, D),
        "query": (L, D, NH),
        "key": (L, D, KH),
        "value": (L, D, KH),
        "attention_out": (L, NH, D),
        "mlp_norm": (L, D),
    }
    if sparse < L:
        shapes |= {"gate": (L - sparse, D, F), "up": (L - sparse, D, F), "down": (L - sparse, F, D)}
    shapes["final_norm"] = (D,)
    if c.attention_bias:
        shapes |= {"query_bias": (L, NH), "key_bias": (L, KH), "value_bias": (L, KH)}
    if c.qk_norm:
        shapes |= {"query_norm": (L, c.head_dim), "key_norm": (L, c.head_dim)}
    if not c.tie_word_embeddings:
        shapes["head"] = (D, V)
    if c.post_norms:
        shapes |= {"attention_post_norm": (L, D), "mlp_post_norm": (L, D)}
    if sparse:
        E, F = c.num_experts, c.moe_intermediate_size
        shapes |= {
            "router": (sparse, D, E),
            "expert_gate": (sparse, E, D, F),
            "expert_up": (sparse, E, D, F),
            "expert_down": (sparse, E, F, D),
        }
    return shapes


def num_parameters(config: ModelConfig) -> int:
    """Number of weights, embeddings included, tied ones once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


# Logical axes of every weight (see sharding.LOGICAL_AXES).
PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    "embed": ("vocab", "embed"),
    "attention_norm": ("layers", None),
    "query": ("layers", "embed", "heads"),
    "key": ("layers", "embed", "kv_heads"),
    "value": ("layers", "embed", "kv_heads"),
    "query_bias": ("layers", "heads"),
    "key_bias": ("layers", "kv_heads"),
    "value_bias": ("layers", "kv_heads"),
    "query_norm": ("layers", None),
    "key_norm": ("layers", None),
    "attention_out": ("layers", "heads", "embed"),
    "attention_post_norm": ("layers", None),
    "mlp_norm": ("layers", None),
    "gate": ("layers", "embed", "ffn"),
    "up": ("layers", "embed", "ffn"),
    "down": ("layers", "ffn", "embed"),
    "mlp_post_norm": ("layers", None),
    "router": ("layers", "embed", None),
    "expert_gate": ("layers", "experts", "embed", "ffn"),
    "expert_up": ("layers", "experts", "embed", "ffn"),
    "expert_down": ("layers", "experts", "ffn", "embed"),
    "final_norm": (None,),
    "head": ("embed", "vocab_out"),
}


def layers_with(name: str, kinds: Sequence[LayerKind]) -> tuple[int, ...]:
    """The layers that have a weight, in the order in which it is stacked."""
    if name.startswith(EXPERTS):
        return tuple(i for i, kind in enumerate(kinds) if kind.experts)
    if name.startswith(DENSE):
        return tuple(i for i, kind in enumerate(kinds) if not kind.experts)
    return tuple(range(len(kinds)))


def stack_indices(names: Iterable[str], kinds: Sequence[LayerKind], layer: int) -> dict[str, int]:
    """The index of each of a layer's weights in its stack; weights that the layer lacks are left
    out."""
    stacks = (
        (name, layers_with(name, kinds)) for name in names if not name.startswith(OUTSIDE_LAYERS)
    )
    return {name: own.index(layer) for name, own in stacks if layer in own}


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random weights in float32: normal(initializer_range), outputs of a layer scaled down by
    sqrt(2 L)."""
    params: Params = {}
    for index, (name, shape) in enumerate(parameter_shapes(config).items()):
        if name.endswith("_norm"):
            params[name] = jnp.full(shape, 0.0 if config.zero_centered_norm else 1.0, jnp.float32)
        elif name.endswith("_bias"):
            params[name] = jnp.zeros(shape, jnp.float32)
        else:
            scale = config.initializer_range
            if name in ("attention_out", "down", "expert_down"):
                scale /= math.sqrt(2 * config.num_hidden_layers)
            params[name] = scale * jax.random.normal(
                jax.random.fold_in(key, index), shape, jnp.float32
            )
    return params
