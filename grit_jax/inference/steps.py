"""The compiled programs of generation: reading the prompts, and one token after the other.

Prompts without records are read by one program. On top of records they are read layer by layer, so
that a layer computes while later ones are still on their way from the store. Decode is a
`lax.while_loop` whose cache is updated in place; its state goes in and comes out, so that the same
program decodes to the end or a few tokens at a time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.inference.records import Codec
from grit_jax.inference.sampling import SamplingRows, sample
from grit_jax.models.attention import Slots
from grit_jax.models.cache import KVCache, empty_cache, insert, place_keys, write_layer
from grit_jax.models.config import LayerKind, ModelConfig
from grit_jax.models.transformer import Params, Transformer
from grit_jax.sharding import constrain
from grit_jax.types import KV, AttentionMode

CAUSAL = AttentionMode.CAUSAL


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """Where a batch stands: `step` tokens are chosen, the last of them (`token`) is not yet in the
    cache.

    `cache` holds prompts and answers; records are beside it, in a cache that is only read.
    """

    cache: KVCache
    step: Int[Array, ""]
    token: Int[Array, " B"]
    position: Int[Array, " B"]  # that `token` will get
    done: Bool[Array, " B"]
    tokens: Int[Array, "B new"]
    logits: Float[Array, "B new V"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StopConditions:
    """When a row ends: at `length` tokens, or at one of `eos` (-1 matches nothing) unless
    `ignore_eos`."""

    length: Int[Array, " B"]
    ignore_eos: Bool[Array, " B"]
    eos: Int[Array, " E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PrefillState:
    """Prompts on their way through the layers: `x` goes into the next one, the layers before it are
    in the caches."""

    x: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    records: KVCache
    own: KVCache  # the prompts' keys and values; its marks are not used


def prefill(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    sampling: SamplingRows,
    limits: StopConditions,
    *,
    config: ModelConfig,
    slots: int,
    new_tokens: int,
    return_logits: bool,
    prompt_mode: AttentionMode = CAUSAL,
) -> DecodeState:
    """Reads right-padded prompts and chooses the first token.

    Args:
      prompt_mode: causal, or bidirectional for a prefix language model: the whole prompt is its
        prefix.
      slots: capacity of the cache, at least `T + new_tokens`.
    """
    model = Transformer(config, params)
    positions, segments = _places(tokens, lengths)
    out = model(tokens, positions, segments, mode=prompt_mode, return_kv=True)
    cache = insert(_empty(config, tokens.shape[0], slots), out.kv, positions, segments, config)
    return _first_token(
        model, out.hidden, cache, lengths, lengths, sampling, limits, new_tokens, return_logits
    )


def prefill_start(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    places: Int[Array, "B P"],
    layers_with: Int[Array, "B P"],
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
) -> PrefillState:
    """Prompts after records whose tokens stand at `places` (`layers_with` 0: an empty slot) and are
    kept as `dtype`."""
    (B, T), P = tokens.shape, places.shape[1]
    positions, segments = _places(tokens, lengths)
    records = dataclasses.replace(
        _empty(config, B, P, dtype),
        positions=places.astype(jnp.int32),
        segments=layers_with.astype(jnp.int32),
        cursor=jnp.asarray(P, jnp.int32),
    )
    x = Transformer(config, params).embed_tokens(tokens)
    return PrefillState(
        x,
        positions + layers_with.sum(axis=1, keepdims=True),
        segments,
        records,
        _empty(config, B, T),
    )


def prefill_layer(
    params: Params,
    state: PrefillState,
    layer: Int[Array, ""],
    weights: dict[str, Int[Array, ""]],
    records: tuple[dict[str, Array], ...],
    codecs: tuple[Codec | None, ...],
    *,
    config: ModelConfig,
    kind: LayerKind,
    prompt_mode: AttentionMode,
) -> PrefillState:
    """One layer over the records' keys and values of that layer. The state's buffers are written in
    place.

    Args:
      weights: where the layer's weights stand (`parameters.stack_indices`).
      records, codecs: from `Loaded`.
    """
    found = [_expand(*one, layer) for one in zip(records, codecs, strict=True)]
    k, v = found[0].k, found[0].v
    if len(found) > 1:
        k, v = (
            jnp.concatenate([kv.k for kv in found], axis=3),
            jnp.concatenate([kv.v for kv in found], axis=2),
        )
    before = state.records
    keys = place_keys(k, before.positions, before.segments, config, local=kind.local_rope)
    before = write_layer(before, layer, keys, v)
    scales = (None if scale is None else scale[layer] for scale in (before.k_scale, before.v_scale))
    cached = Slots(before.k[layer], before.v[layer], before.positions, before.segments, *scales)
    out = Transformer(config, params).one_layer(
        state.x,
        state.positions,
        state.segments,
        cached,
        kind=kind,
        stack_indices=weights,
        mode=prompt_mode,
    )
    own = out.kv.k.transpose(0, 2, 3, 1)
    own_keys = place_keys(own, state.positions, state.segments, config, local=kind.local_rope)
    return dataclasses.replace(
        state,
        x=out.x,
        records=_constrained(before),
        own=_constrained(write_layer(state.own, layer, own_keys, out.kv.v.swapaxes(1, 2))),
    )


def prefill_end(
    params: Params,
    state: PrefillState,
    lengths: Int[Array, " B"],
    sampling: SamplingRows,
    limits: StopConditions,
    *,
    config: ModelConfig,
    slots: int,
    new_tokens: int,
    return_logits: bool,
) -> DecodeState:
    """Chooses the first token after the last layer. The records stay where they are; `slots` are
    for the rest."""
    model, (B, T, _) = Transformer(config, params), state.x.shape
    embed = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part.astype(whole.dtype), (0,) * whole.ndim
    )
    cache = _empty(config, B, slots)
    cache = KVCache(
        embed(cache.k, state.own.k),
        embed(cache.v, state.own.v),
        embed(cache.positions, state.positions),
        embed(cache.segments, state.segments),
        jnp.asarray(T, jnp.int32),
    )
    after = state.positions[:, 0] + lengths
    return _first_token(
        model,
        model.apply_final_norm(state.x),
        cache,
        lengths,
        after,
        sampling,
        limits,
        new_tokens,
        return_logits,
    )


def decode(
    params: Params,
    state: DecodeState,
    records: KVCache | None,
    until: Int[Array, ""],
    sampling: SamplingRows,
    limits: StopConditions,
    *,
    config: ModelConfig,
) -> DecodeState:
    """Decodes until `until` tokens are chosen or every row has ended. The state's buffers are
    written in place."""
    model, before = Transformer(config, params), (records,) if records is not None else ()

    def goes_on(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.done)

    def body(state: DecodeState) -> DecodeState:
        tokens, positions = state.token[:, None], state.position[:, None]
        segments = jnp.ones_like(tokens)
        out = model(
            tokens, positions, segments, mode=CAUSAL, cache=(*before, state.cache), return_kv=True
        )
        cache = insert(state.cache, out.kv, positions, segments, config)
        logits = model.logits(out.hidden[:, 0])
        token = sample(logits, sampling, state.step)
        state = dataclasses.replace(state, cache=cache, token=token, position=state.position + 1)
        return _record(state, token, logits, limits)

    return jax.lax.while_loop(goes_on, body, state)


prefill_step = jax.jit(
    prefill, static_argnames=("config", "slots", "new_tokens", "return_logits", "prompt_mode")
)
prefill_start_step = jax.jit(prefill_start, static_argnames=("config", "dtype"))
prefill_layer_step = jax.jit(
    prefill_layer, static_argnames=("config", "kind", "prompt_mode"), donate_argnames=("state",)
)
prefill_end_step = jax.jit(
    prefill_end, static_argnames=("config", "slots", "new_tokens", "return_logits")
)
decode_step = jax.jit(decode, static_argnames=("config",), donate_argnames=("state",))


def _places(tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> tuple[Array, Array]:
    """Positions and segments of right-padded prompts."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return positions, (positions < lengths[:, None]).astype(jnp.int32)


def _expand(arrays: dict[str, Array], codec: Codec | None, layer: Int[Array, ""]) -> KV:
    """Keys `[B K H P]` and values `[B K P H]` of one layer's records."""
    return KV(arrays["k"], arrays["v"]) if codec is None else codec.expand_layer(arrays, layer)


def _empty(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype | None = None) -> KVCache:
    return _constrained(empty_cache(config, rows, slots, dtype))


def _constrained(cache: KVCache) -> KVCache:
    """Heads and rows split as those of the activations are, from the first program on to the
    last."""
    k = constrain(cache.k, (None, "rows", "kv_heads", None, None))
    return dataclasses.replace(
        cache, k=k, v=constrain(cache.v, (None, "rows", "kv_heads", None, None))
    )


def _first_token(
    model: Transformer,
    hidden: Float[Array, "B T D"],
    cache: KVCache,
    lengths: Int[Array, " B"],
    after: Int[Array, " B"],
    sampling: SamplingRows,
    limits: StopConditions,
    new_tokens: int,
    return_logits: bool,
) -> DecodeState:
    """The state once each prompt's last token is read; `after` is the position that the next one
    gets."""
    B = len(lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = model.logits(last)
    first = sample(logits, sampling, jnp.zeros((), jnp.int32))
    state = DecodeState(
        cache=cache,
        step=jnp.zeros((), jnp.int32),
        token=first,
        position=after,
        done=jnp.zeros(B, bool),
        tokens=jnp.zeros((B, new_tokens), jnp.int32),
        logits=jnp.zeros((B, new_tokens, logits.shape[-1]), jnp.float32) if return_logits else None,
    )
    return _record(state, first, logits, limits)


def _record(
    state: DecodeState, token: jax.Array, logits: jax.Array, limits: StopConditions
) -> DecodeState:
    """Notes the token just chosen; rows that had ended keep what they have."""
    alive = ~state.done
    write = jax.lax.dynamic_update_slice
    tokens = write(state.tokens, jnp.where(alive, token, 0)[:, None], (0, state.step))
    kept = state.logits
    if kept is not None:
        kept = write(kept, jnp.where(alive[:, None], logits, 0.0)[:, None], (0, state.step, 0))
    ended = jnp.any(token[:, None] == limits.eos[None, :], axis=1) & ~limits.ignore_eos
    step = state.step + 1
    return dataclasses.replace(
        state,
        tokens=tokens,
        logits=kept,
        done=state.done | ended | (step >= limits.length),
        step=step,
    )
