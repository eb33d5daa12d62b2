"""The transformer: one set of weights, a mode per call, layers under `lax.scan`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from grit_jax.models.attention import Keys, Slots, attend
from grit_jax.models.cache import KVCache
from grit_jax.models.config import LayerKind, ModelConfig
from grit_jax.models.kernels import ATTENTION_NAME, soft_cap
from grit_jax.models.layer_stack import Layer, run_layers
from grit_jax.models.layers import gated_mlp, linear, rms_norm, token_embeddings, vocabulary_logits
from grit_jax.models.lora import row_keys
from grit_jax.models.moe import expert_mlp
from grit_jax.models.parameters import (
    OUTSIDE_LAYERS,
    PARAMETER_AXES,
    Params,
    init_params,
    parameter_shapes,
)
from grit_jax.models.rotary import rotate, rotation
from grit_jax.sharding import constrain
from grit_jax.types import KV, Mode, ModelOutput, RouterStats

__all__ = ["PARAMETER_AXES", "Params", "Transformer", "init_params", "parameter_shapes"]

# What a layer keeps for the backward pass, by name. "full" keeps its input alone and computes the
# rest again; "offload" keeps that in the memory of the host; "save_attention" keeps what attention
# gave beside it, "save_qkv" what went into attention, too; "dots" the products with weights.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "save_attention": jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME),
    "save_qkv": jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME, "qkv"),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerOutput:
    """What a layer gives: its output, and its tokens' own keys (unrotated) and values `[B T K
    H]`."""

    x: Float[Array, "B T D"]
    kv: KV


class Transformer(nnx.Module):
    """A decoder-only transformer in any family's shape.

    `Transformer(config, params=...)` wraps weights (inside a trace, too: it costs nothing);
    `Transformer(config, rngs=nnx.Rngs(0))` makes new ones.
    """

    def __init__(
        self, config: ModelConfig, params: Params | None = None, *, rngs: nnx.Rngs | None = None
    ):
        if params is None:
            if rngs is None:
                raise ValueError("Transformer needs params or rngs")
            params = init_params(config, rngs.params())
        self.config = config
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def params(self) -> Params:
        """The weights as a dictionary of arrays."""
        return {
            name: value.get_value()
            for name, value in vars(self).items()
            if isinstance(value, nnx.Param)
        }

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        *,
        mode: Mode,
        cache: KVCache | Sequence[KVCache] | None = None,
        return_kv: bool = False,
        blocks: Int[Array, "B T"] | None = None,
        routed: Int[Array, "B T"] | None = None,
    ) -> ModelOutput:
        """Hidden states of `tokens`, which see their own segment and the cached keys of that
        segment.

        Args:
          tokens: ids; padding may be any valid id.
          positions: rotary positions.
          segments: from 1; 0 is padding.
          mode: static; one mode, or blocks of `(mode, rows)` (see `types.Mode`).
          cache: keys and values computed before, in one cache or several; read, not changed (see
            `cache.insert`).
          return_kv: whether to return the tokens' own keys (unrotated) and values.
          blocks: what prefix mode needs beside (see `types.Rows`).
          routed: the tokens that `ModelOutput.router` is counted over, 0 elsewhere; None:
            `segments`.
        """
        c, weights = self.config, self.params()
        caches = (cache,) if isinstance(cache, KVCache) else tuple(cache or ())
        layers = {
            name: value for name, value in weights.items() if not name.startswith(OUTSIDE_LAYERS)
        }
        layers = row_keys(layers, tokens)
        x = self.embed_tokens(tokens)
        rotations = {
            local: rotation(c, positions, segments, local=local)
            for local in {k.local_rope for k in c.layer_kinds}
        }
        body = functools.partial(
            _layer,
            config=c,
            mode=mode,
            rotations=rotations,
            positions=positions,
            segments=segments,
            cache_marks=[(cache.positions, cache.segments) for cache in caches],
            return_kv=return_kv,
            blocks=blocks,
            routed=segments if routed is None else routed,
        )

        def make_layer(kind: LayerKind, pick: Callable[[Any], Any]) -> Layer:
            layer = lambda carry, given: body(carry, pick(given), kind=kind)
            return (
                layer
                if c.remat == "none"
                else jax.checkpoint(layer, policy=REMAT_POLICIES[c.remat])
            )

        router = None
        if c.num_experts:
            router = RouterStats(jnp.zeros(c.num_experts), jnp.zeros(c.num_experts))
        cached = [(cache.k, cache.v, cache.k_scale, cache.v_scale) for cache in caches]
        (x, router), kv = run_layers(
            make_layer, (x, router), layers, cached, c.layer_kinds, scan=c.scan_layers
        )
        if router is not None:
            sparse = sum(kind.experts for kind in c.layer_kinds)
            router = jax.tree.map(lambda total: total / sparse, router)
        return ModelOutput(self.apply_final_norm(x), kv, router)

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What the first layer gets."""
        c = self.config
        x = token_embeddings(tokens, self.params(), jnp.dtype(c.dtype))
        if c.scale_embeddings:
            x *= jnp.asarray(
                math.sqrt(c.hidden_size), x.dtype
            )  # rounded first, as Gemma's own code does
        # On the way from a table that is split along D to rows: XLA by itself goes by all rows on
        # every device.
        return constrain(constrain(x, ("replicas", "tokens", "embed")), ("rows", "tokens", None))

    def one_layer(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        cached: Slots,
        *,
        kind: LayerKind,
        stack_indices: Mapping[str, Any],
        mode: Mode,
    ) -> LayerOutput:
        """One layer by itself, over its cached keys: what `__call__` does for each, for a caller
        that has them one after the other.

        Args:
          kind, places: what the layer is (static), and where its weights stand
            (`parameters.stack_indices`).
        """
        c, weights = self.config, self.params()
        own = {
            name: jax.tree.map(lambda a, at=at: a[at], weights[name])
            for name, at in stack_indices.items()
        }
        router = (
            RouterStats(jnp.zeros(c.num_experts), jnp.zeros(c.num_experts))
            if c.num_experts
            else None
        )
        (x, _), kv = _layer(
            (x, router),
            (own, [(cached.k, cached.v, cached.k_scale, cached.v_scale)]),
            kind=kind,
            config=c,
            mode=mode,
            rotations={kind.local_rope: rotation(c, positions, segments, local=kind.local_rope)},
            positions=positions,
            segments=segments,
            cache_marks=[(cached.positions, cached.segments)],
            return_kv=True,
            blocks=None,
            routed=segments,
        )
        return LayerOutput(x, kv)

    def apply_final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states from what the last layer gives."""
        c = self.config
        return rms_norm(
            x, self.params()["final_norm"], c.rms_norm_eps, zero_centered=c.zero_centered_norm
        )

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits in float32."""
        return soft_cap(
            vocabulary_logits(hidden, self.params()), self.config.final_logit_softcapping
        )


def _layer(
    carry,
    layer_and_cache,
    *,
    kind,
    config,
    mode,
    rotations,
    positions,
    segments,
    cache_marks,
    return_kv,
    blocks,
    routed,
):
    """One layer: `x` [B T D] and the sum of router statistics, with this layer's weights and its
    slice of the cache.

    Returns the new `x` and sum, and the layer's own keys and values.
    """
    x, router = carry
    x = checkpoint_name(x, "layer_input")
    layer, cached_kv = layer_and_cache
    c, by = config, rotations[kind.local_rope]
    norm = lambda x, name: rms_norm(
        x, layer[name], c.rms_norm_eps, zero_centered=c.zero_centered_norm
    )
    B, T, _ = x.shape

    h = norm(x, "attention_norm")
    q, k, v = (linear(h, layer, name) for name in ("query", "key", "value"))
    q = q.reshape(B, T, c.num_attention_heads, c.head_dim)
    k = k.reshape(B, T, c.num_key_value_heads, c.head_dim)
    v = v.reshape(B, T, c.num_key_value_heads, c.head_dim)
    if c.qk_norm:
        q, k = norm(q, "query_norm"), norm(k, "key_norm")
    cached = [
        Slots(*kv[:2], *marks, *kv[2:]) for kv, marks in zip(cached_kv, cache_marks, strict=True)
    ]
    rotated, *own = (checkpoint_name(a, "qkv") for a in (rotate(q, by), rotate(k, by), v))
    out = attend(
        rotated,
        Keys(*own, positions, segments),
        mode=mode,
        window=kind.window,
        cached=cached,
        blocks=blocks,
        scale=c.attention_scale,
        softcap=c.attn_logit_softcapping,
    )
    out = linear(out.reshape(B, T, -1), layer, "attention_out")
    x = x + (norm(out, "attention_post_norm") if c.post_norms else out)
    h = norm(x, "mlp_norm")
    if kind.experts:
        out, spread = expert_mlp(h, routed, layer, c)
        router = jax.tree.map(jnp.add, router, spread)
    else:
        out = gated_mlp(h, layer, c.hidden_act)
    x = x + (norm(out, "mlp_post_norm") if c.post_norms else out)
    return (constrain(x, ("rows", "tokens", None)), router), (KV(k, v) if return_kv else None)
