"""The transformer: one set of weights, a mode per call, layers under `lax.scan`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from grit_jax.models.attention import attend
from grit_jax.models.cache import KVCache
from grit_jax.models.config import LayerKind, ModelConfig
from grit_jax.models.kernels import ATTENTION_NAME, KeyValues, soft_cap
from grit_jax.models.layer_stack import Layer, layer_of, run_layers
from grit_jax.models.layers import (
    PRODUCT_NAME,
    Weights,
    gated_mlp,
    linear,
    rms_norm,
    token_embeddings,
    vocabulary_logits,
)
from grit_jax.models.lora import row_keys
from grit_jax.models.moe import expert_mlp
from grit_jax.models.parameters import (
    OUTSIDE_LAYERS,
    PARAMETER_AXES,
    Params,
    init_params,
    parameter_shapes,
)
from grit_jax.models.rotary import Rotation, rotate, rotation
from grit_jax.models.slot_cache import SlotRows, slot_attention
from grit_jax.sharding import constrain
from grit_jax.types import KV, AttentionMode, Mode, ModelOutput, RouterStats

__all__ = ["PARAMETER_AXES", "Params", "Transformer", "init_params", "parameter_shapes"]

# What a layer keeps for the backward pass. "full" keeps its input alone and recomputes the rest;
# "offload" keeps that input in the memory of the host; "save_attention" also keeps the output of
# attention, "save_qkv" its inputs as well; "dots" keeps the products with weights.
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
    # By name: of an adapted weight the sum is kept, and not also the products with its factors.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT_NAME),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerOutput:
    """A layer's output, and its tokens' own keys `[B K H T]` (unrotated) and values `[B K T H]`."""

    x: Float[Array, "B T D"]
    kv: KV


@dataclasses.dataclass
class Pass:
    """What is the same for all layers of one forward pass over `B` rows of `T` tokens.

    Attributes:
      mode: who sees whom (static, see `types.Mode`).
      rotations: the tokens' rotary embedding, by whether a layer's is local.
      cache_marks: positions and segments `[B S]` of each cache.
      slots: what is read instead of caches, where the rows belong to slots of the engine.
      blocks: of prefix mode (see `types.Rows`).
      routed: the tokens that router statistics count, 0 elsewhere.
      return_kv: whether layers return their keys and values.
    """

    config: ModelConfig
    mode: Mode
    rotations: Mapping[bool, Rotation]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    routed: Int[Array, "B T"]
    cache_marks: Sequence[tuple[Int[Array, "B S"], Int[Array, "B S"]]] = ()
    slots: SlotRows | None = None
    blocks: Int[Array, "B T"] | None = None
    return_kv: bool = False


# What goes from layer to layer: `x` [B T D] and the sum of router statistics (None without
# experts). A layer's slice of a cache: keys, values and their scales (None without). Slots are not
# sliced: a layer gets its number.
Carry = tuple[Float[Array, "B T D"], RouterStats | None]
CachedLayer = tuple[Array, Array, Array | None, Array | None]
CachedLayers = Sequence[CachedLayer] | Int[Array, ""]


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
        cache: KVCache | Sequence[KVCache] | SlotRows | None = None,
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
            `cache.insert`). Or the slots of the engine that the rows belong to; a row's tokens are
            one segment then.
          return_kv: whether to return the tokens' own keys (unrotated) and values.
          blocks: what prefix mode needs beside (see `types.Rows`).
          routed: the tokens that `ModelOutput.router` is counted over, 0 elsewhere; None:
            `segments`.
        """
        c, weights = self.config, self.params()
        slots = cache if isinstance(cache, SlotRows) else None
        caches: Sequence[KVCache] = ()
        if isinstance(cache, KVCache):
            caches = (cache,)
        elif cache is not None and not isinstance(cache, SlotRows):
            caches = cache
        layers = {
            name: value for name, value in weights.items() if not name.startswith(OUTSIDE_LAYERS)
        }
        layers = row_keys(layers, tokens)
        x = self.embed_tokens(tokens)
        rotations = {
            local: rotation(c, positions, segments, local=local)
            for local in {k.local_rope for k in c.layer_kinds}
        }
        forward = Pass(
            config=c,
            mode=mode,
            rotations=rotations,
            positions=positions,
            segments=segments,
            routed=segments if routed is None else routed,
            cache_marks=[(cache.positions, cache.segments) for cache in caches],
            slots=slots,
            blocks=blocks,
            return_kv=return_kv,
        )

        def make_layer(kind: LayerKind, pick: Callable[[Any], Any]) -> Layer:
            layer = lambda carry, stacked: _layer(carry, pick(stacked), forward, kind)
            return (
                layer
                if c.remat == "none"
                else jax.checkpoint(layer, policy=REMAT_POLICIES[c.remat])
            )

        cached: Any = [(cache.k, cache.v, cache.k_scale, cache.v_scale) for cache in caches]
        if slots is not None:
            cached = jnp.arange(c.num_hidden_layers)
        (x, router), kv = run_layers(
            make_layer, (x, _no_router_stats(c)), layers, cached, c.layer_kinds, scan=c.scan_layers
        )
        if router is not None:
            sparse = sum(kind.experts for kind in c.layer_kinds)
            router = jax.tree.map(lambda total: total / sparse, router)
        return ModelOutput(self.apply_final_norm(x), kv, router)

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The input of the first layer."""
        c = self.config
        x = token_embeddings(tokens, self.params(), jnp.dtype(c.dtype))
        if c.scale_embeddings:
            # The factor is rounded first, as in Gemma's own code.
            x *= jnp.asarray(math.sqrt(c.hidden_size), x.dtype)
        # From a table that is split along D to rows in two steps: left to itself, XLA gathers all
        # rows on every device in between.
        return constrain(constrain(x, ("replicas", "tokens", "embed")), ("rows", "tokens", None))

    def one_layer(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        slots: SlotRows,
        *,
        layer: Int[Array, ""],
        kind: LayerKind,
        stack_indices: Mapping[str, Any],
        mode: Mode,
    ) -> LayerOutput:
        """One layer over the slots, as `__call__` applies each.

        For callers whose cached keys arrive layer by layer.

        Args:
          layer: its number.
          kind: what kind of layer it is; static.
          stack_indices: where each of its weights stands (`parameters.stack_indices`); Python
            ints for `LayerArrays`.
        """
        c, weights = self.config, self.params()
        own = {name: layer_of(weights[name], index) for name, index in stack_indices.items()}
        forward = Pass(
            config=c,
            mode=mode,
            rotations={kind.local_rope: rotation(c, positions, segments, local=kind.local_rope)},
            positions=positions,
            segments=segments,
            routed=segments,
            slots=slots,
            return_kv=True,
        )
        (x, _), kv = _layer((x, _no_router_stats(c)), (own, layer), forward, kind)
        assert kv is not None
        return LayerOutput(x, kv)

    def apply_final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states from the output of the last layer."""
        c = self.config
        return rms_norm(
            x, self.params()["final_norm"], c.rms_norm_eps, zero_centered=c.zero_centered_norm
        )

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits in float32."""
        return soft_cap(
            vocabulary_logits(hidden, self.params()), self.config.final_logit_softcapping
        )


def _no_router_stats(config: ModelConfig) -> RouterStats | None:
    """Where the sum over layers starts; None for a model without experts."""
    E = config.num_experts
    return RouterStats(jnp.zeros(E), jnp.zeros(E)) if E else None


def _layer(
    carry: Carry,
    weights_and_caches: tuple[Weights, CachedLayers],
    forward: Pass,
    kind: LayerKind,
) -> tuple[Carry, KV | None]:
    """One layer with its weights and its slice of each cache.

    Returns:
      The new carry, and the layer's own keys (unrotated) and values `[B T K H]` if they were asked
      for.
    """
    x, router = carry
    x = checkpoint_name(x, "layer_input")
    layer, caches = weights_and_caches
    c, by = forward.config, forward.rotations[kind.local_rope]
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
    rotated_q, rotated_k, values = (
        checkpoint_name(a, "qkv") for a in (rotate(q, by), rotate(k, by), v)
    )
    out = _attention(
        rotated_q,
        KeyValues(rotated_k, values, forward.positions, forward.segments),
        caches,
        forward,
        kind.window,
    )
    out = linear(out.reshape(B, T, -1), layer, "attention_out")
    x = x + (norm(out, "attention_post_norm") if c.post_norms else out)
    h = norm(x, "mlp_norm")
    if kind.experts:
        out, spread = expert_mlp(h, forward.routed, layer, c)
        router = jax.tree.map(jnp.add, router, spread)
    else:
        out = gated_mlp(h, layer, c.hidden_act)
    x = x + (norm(out, "mlp_post_norm") if c.post_norms else out)
    kv = KV(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)) if forward.return_kv else None
    return (constrain(x, ("rows", "tokens", None)), router), kv


def _attention(
    q: Float[Array, "B T N H"],
    own: KeyValues,
    caches: CachedLayers,
    forward: Pass,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """Attention of a layer to its own tokens, and to caches or slots."""
    c = forward.config
    options: dict[str, Any] = {
        "window": window,
        "scale": c.attention_scale,
        "softcap": c.attn_logit_softcapping,
    }
    if forward.slots is not None:
        assert isinstance(forward.mode, AttentionMode)
        return slot_attention(q, own, forward.slots, caches, mode=forward.mode, **options)
    cached = [
        KeyValues(k, v, *marks, by_head=True, k_scale=k_scale, v_scale=v_scale)
        for (k, v, k_scale, v_scale), marks in zip(caches, forward.cache_marks, strict=True)
    ]
    return attend(q, own, mode=forward.mode, cached=cached, blocks=forward.blocks, **options)
