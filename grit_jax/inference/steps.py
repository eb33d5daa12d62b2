"""The two compiled programs of generation: reading the prompts, and one token after the other.

Decode is a `lax.while_loop` whose cache is updated in place; its state goes in and comes out, so that the same program
decodes to the end or a few tokens at a time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.inference.pieces import Loaded
from grit_jax.inference.sampling import SamplingRows, sample
from grit_jax.models.cache import KVCache, cache_from, empty_cache, insert
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params, Transformer
from grit_jax.types import AttentionMode

CAUSAL = AttentionMode.CAUSAL


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """Where a batch stands: `step` tokens are chosen, the last of them (`token`) is not yet in the cache."""

    cache: KVCache
    step: Int[Array, ""]
    token: Int[Array, " B"]
    position: Int[Array, " B"]  # that `token` will get
    done: Bool[Array, " B"]
    tokens: Int[Array, "B new"]
    logits: Float[Array, "B new V"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Limits:
    """When a row ends: at `length` tokens, or at one of `eos` (-1 matches nothing) unless `ignore_eos`."""

    length: Int[Array, " B"]
    ignore_eos: Bool[Array, " B"]
    eos: Int[Array, " E"]


def prefill(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    loaded: Loaded | None,
    sampling: SamplingRows,
    limits: Limits,
    *,
    config: ModelConfig,
    slots: int,
    new_tokens: int,
    return_logits: bool,
    prompt_mode: AttentionMode = CAUSAL,
) -> DecodeState:
    """Reads right-padded prompts on top of the loaded pieces and chooses the first token.

    Args:
      prompt_mode: causal, or bidirectional for a prefix language model: the whole prompt is its prefix.
      slots: capacity of the cache, at least `P + T + new_tokens`.
    """
    B, T = tokens.shape
    model = Transformer(config, params)
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    segments = (places < lengths[:, None]).astype(jnp.int32)
    cache, offset = None, jnp.zeros(B, jnp.int32)
    if loaded is not None:
        offset = loaded.segments.sum(axis=1)
        cache = cache_from(loaded.kv(jnp.dtype(config.dtype)), loaded.positions, loaded.segments, config)
    positions = offset[:, None] + places
    out = model(tokens, positions, segments, mode=prompt_mode, cache=cache, return_kv=True)
    last = jnp.take_along_axis(out.hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = model.logits(last)

    working = empty_cache(config, B, slots)
    if cache is not None:
        working = _copy_into(working, cache)
    working = insert(working, out.kv, positions, segments, config)
    first = sample(logits, sampling, jnp.zeros((), jnp.int32))
    state = DecodeState(
        cache=working,
        step=jnp.zeros((), jnp.int32),
        token=first,
        position=offset + lengths,
        done=jnp.zeros(B, bool),
        tokens=jnp.zeros((B, new_tokens), jnp.int32),
        logits=jnp.zeros((B, new_tokens, logits.shape[-1]), jnp.float32) if return_logits else None,
    )
    return _record(state, first, logits, limits)


def decode(
    params: Params,
    state: DecodeState,
    until: Int[Array, ""],
    sampling: SamplingRows,
    limits: Limits,
    *,
    config: ModelConfig,
) -> DecodeState:
    """Decodes until `until` tokens are chosen or every row has ended. The state's buffers are written in place."""
    model = Transformer(config, params)

    def goes_on(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.done)

    def body(state: DecodeState) -> DecodeState:
        tokens, positions = state.token[:, None], state.position[:, None]
        segments = jnp.ones_like(tokens)
        out = model(tokens, positions, segments, mode=CAUSAL, cache=state.cache, return_kv=True)
        cache = insert(state.cache, out.kv, positions, segments, config)
        logits = model.logits(out.hidden[:, 0])
        token = sample(logits, sampling, state.step)
        state = dataclasses.replace(state, cache=cache, token=token, position=state.position + 1)
        return _record(state, token, logits, limits)

    return jax.lax.while_loop(goes_on, body, state)


prefill_step = jax.jit(prefill, static_argnames=("config", "slots", "new_tokens", "return_logits", "prompt_mode"))
decode_step = jax.jit(decode, static_argnames=("config",), donate_argnames=("state",))


def _record(state: DecodeState, token: jax.Array, logits: jax.Array, limits: Limits) -> DecodeState:
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
        state, tokens=tokens, logits=kept, done=state.done | ended | (step >= limits.length), step=step
    )


def _copy_into(working: KVCache, pieces: KVCache) -> KVCache:
    """A cache that begins with the slots of another one."""
    begin = lambda whole, part: jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), (0,) * whole.ndim)
    return KVCache(
        k=begin(working.k, pieces.k),
        v=begin(working.v, pieces.v),
        positions=begin(working.positions, pieces.positions),
        segments=begin(working.segments, pieces.segments),
        cursor=pieces.cursor,
    )
