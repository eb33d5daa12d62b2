"""The transformer: one set of weights, a mode per call, layers under `lax.scan`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from grit_jax.models.attention import Keys, attend
from grit_jax.models.cache import KVCache
from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import embed_tokens, gated_mlp, linear, rms_norm, rotary_angles, rotate, vocabulary_logits
from grit_jax.sharding import constrain
from grit_jax.types import KV, Mode, Output

Params = dict[str, Any]  # parameter name -> array


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight; those of a layer carry the leading `L` axis."""
    c = config
    L, D, F, V = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size
    NH, KH = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (V, D),
        "attention_norm": (L, D),
        "query": (L, D, NH),
        "key": (L, D, KH),
        "value": (L, D, KH),
        "attention_out": (L, NH, D),
        "mlp_norm": (L, D),
        "gate": (L, D, F),
        "up": (L, D, F),
        "down": (L, F, D),
        "final_norm": (D,),
    }
    if c.attention_bias:
        shapes |= {"query_bias": (L, NH), "key_bias": (L, KH), "value_bias": (L, KH)}
    if c.qk_norm:
        shapes |= {"query_norm": (L, c.head_dim), "key_norm": (L, c.head_dim)}
    if not c.tie_word_embeddings:
        shapes["head"] = (D, V)
    return shapes


# Logical axes of every weight (see sharding.ShardingRules).
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
    "mlp_norm": ("layers", None),
    "gate": ("layers", "embed", "ffn"),
    "up": ("layers", "embed", "ffn"),
    "down": ("layers", "ffn", "embed"),
    "final_norm": (None,),
    "head": ("embed", "vocab_out"),
}
_OUTSIDE_LAYERS = ("embed", "final_norm", "head")  # and what is added to them under names that begin so

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random weights in float32: normal(initializer_range), outputs of a layer scaled down by sqrt(2 L)."""
    params: Params = {}
    for index, (name, shape) in enumerate(parameter_shapes(config).items()):
        if name.endswith("_norm"):
            params[name] = jnp.ones(shape, jnp.float32)
        elif name.endswith("_bias"):
            params[name] = jnp.zeros(shape, jnp.float32)
        else:
            scale = config.initializer_range
            if name in ("attention_out", "down"):
                scale /= math.sqrt(2 * config.num_hidden_layers)
            params[name] = scale * jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
    return params


class Transformer(nnx.Module):
    """A decoder-only transformer in any family's shape.

    `Transformer(config, params=...)` wraps weights (inside a trace, too: it costs nothing);
    `Transformer(config, rngs=nnx.Rngs(0))` makes new ones.
    """

    def __init__(self, config: ModelConfig, params: Params | None = None, *, rngs: nnx.Rngs | None = None):
        if params is None:
            if rngs is None:
                raise ValueError("Transformer needs params or rngs")
            params = init_params(config, rngs.params())
        self.config = config
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def params(self) -> Params:
        """The weights as a dictionary of arrays."""
        return {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        *,
        mode: Mode,
        cache: KVCache | None = None,
        return_kv: bool = False,
        blocks: Int[Array, "B T"] | None = None,
    ) -> Output:
        """Hidden states of `tokens`, which see their own segment and the cached keys of that segment.

        Args:
          tokens: ids; padding may be any valid id.
          positions: rotary positions.
          segments: from 1; 0 is padding.
          mode: static; one mode, or consecutive blocks of `(mode, rows)`.
          cache: keys and values computed before; it is read, not changed (see `cache.insert`).
          return_kv: whether to return the tokens' own keys (unrotated) and values.
          blocks: what prefix mode needs beside (see `types.Rows`).
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        weights = self.params()
        layers = {name: value for name, value in weights.items() if not name.startswith(_OUTSIDE_LAYERS)}
        x = constrain(embed_tokens(tokens, weights, dtype), ("rows", None, None))
        angles = rotary_angles(positions, c.head_dim, c.rope_theta)
        body: Callable[..., Any] = functools.partial(
            _layer, config=c, mode=mode, angles=angles, positions=positions, segments=segments,
            cache_marks=None if cache is None else (cache.positions, cache.segments), return_kv=return_kv,
            blocks=blocks,
        )  # fmt: skip
        if c.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[c.remat])
        cached = None if cache is None else (cache.k, cache.v)
        if c.scan_layers:
            x, kv = jax.lax.scan(body, x, (layers, cached))
        else:
            collected = []
            for index in range(c.num_hidden_layers):
                x, own = body(x, jax.tree.map(lambda a: a[index], (layers, cached)))  # noqa: B023
                collected.append(own)
            kv = jax.tree.map(lambda *a: jnp.stack(a), *collected) if return_kv else None
        hidden = rms_norm(x, weights["final_norm"], c.rms_norm_eps)
        return Output(hidden, kv)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits in float32."""
        return vocabulary_logits(hidden, self.params())


def _layer(x, layer_and_cache, *, config, mode, angles, positions, segments, cache_marks, return_kv, blocks):
    """One pre-norm layer: `x` [B T D] and this layer's slice of weights and cache -> new `x`, own keys/values."""
    layer, cached_kv = layer_and_cache
    c = config
    B, T, _ = x.shape

    h = rms_norm(x, layer["attention_norm"], c.rms_norm_eps)
    q, k, v = (linear(h, layer, name) for name in ("query", "key", "value"))
    q = q.reshape(B, T, c.num_attention_heads, c.head_dim)
    k = k.reshape(B, T, c.num_key_value_heads, c.head_dim)
    v = v.reshape(B, T, c.num_key_value_heads, c.head_dim)
    if c.qk_norm:
        q = rms_norm(q, layer["query_norm"], c.rms_norm_eps)
        k = rms_norm(k, layer["key_norm"], c.rms_norm_eps)
    cached = None if cached_kv is None else Keys(*(a.astype(x.dtype) for a in cached_kv), *cache_marks)
    own = Keys(rotate(k, angles), v, positions, segments)
    out = attend(rotate(q, angles), own, mode=mode, window=c.sliding_window, cached=cached, blocks=blocks)
    x = x + linear(out.reshape(B, T, -1), layer, "attention_out")
    h = rms_norm(x, layer["mlp_norm"], c.rms_norm_eps)
    x = x + gated_mlp(h, layer)
    return constrain(x, ("rows", None, None)), (KV(k, v) if return_kv else None)
