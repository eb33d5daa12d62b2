"""The compiled programs of generation: prefill reads the prompts, decode adds one token after the
other.

Prompts without records are read by one program. Prompts over records are read layer by layer, so
that a layer computes while later ones are still being loaded from the store. Decode is a
`lax.while_loop` whose cache is updated in place; its state is an argument and a result, so the same
program decodes to the end or a few tokens at a time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.inference.records import LayerRecords
from grit_jax.inference.sampling import SamplingRows, sample
from grit_jax.models.cache import KVCache, empty_cache, insert, place_keys, write_layer
from grit_jax.models.config import LayerKind, ModelConfig
from grit_jax.models.kernels import KeyValues
from grit_jax.models.transformer import Params, Transformer
from grit_jax.sharding import constrain
from grit_jax.types import AttentionMode

CAUSAL = AttentionMode.CAUSAL


@dataclasses.dataclass(frozen=True)
class DecodeSizes:
    """Static sizes of a batch.

    Attributes:
      slots: capacity of the cache for prompts and answers, at least their tokens together.
      new_tokens: capacity of the answers.
      return_logits: whether the state keeps the logits of every new token.
    """

    slots: int
    new_tokens: int
    return_logits: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PromptRows:
    """Right-padded token ids of the prompts, and how many each has."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]

    def positions(self) -> Int[Array, "B T"]:
        """Of every token, from 0."""
        return jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)

    def segments(self) -> Int[Array, "B T"]:
        """1 for a token, 0 for padding."""
        return (self.positions() < self.lengths[:, None]).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StopConditions:
    """When a row ends: after `length` tokens, or with one of `eos` (-1 matches nothing) unless
    `ignore_eos`."""

    length: Int[Array, " B"]
    ignore_eos: Bool[Array, " B"]
    eos: Int[Array, " n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeSettings:
    """How the next token of each row is chosen, and when a row ends."""

    sampling: SamplingRows
    stop: StopConditions


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """A batch after `step` new tokens.

    Attributes:
      cache: prompts and answers. Records are beside it, in a cache that is only read.
      token: the last token chosen, which is not in the cache yet.
      position: that `token` will get.
      done: rows that have ended.
      finite: rows whose logits have all been finite so far; a row ends with the first that are not.
      tokens: the new tokens, 0 after the end.
      logits: those that each new token was chosen from, where `DecodeSizes.return_logits`.
    """

    cache: KVCache
    step: Int[Array, ""]
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    done: Bool[Array, " B"]
    finite: Bool[Array, " B"]
    tokens: Int[Array, "B new"]
    logits: Float[Array, "B new V"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PrefillState:
    """Prompts between two layers.

    Attributes:
      x: input of the next layer.
      records: cache of the records; holds the layers done so far.
      prompt_kv: the prompts' own keys and values of the layers done so far; its positions and
        segments are not used.
    """

    x: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    records: KVCache
    prompt_kv: KVCache


def prefill(
    params: Params,
    prompts: PromptRows,
    settings: DecodeSettings,
    *,
    config: ModelConfig,
    sizes: DecodeSizes,
    prompt_mode: AttentionMode = CAUSAL,
) -> DecodeState:
    """Reads prompts without records and chooses the first token.

    Args:
      prompt_mode: causal, or bidirectional for a prefix language model, whose prefix is the whole
        prompt.
    """
    model = Transformer(config, params)
    positions, segments = prompts.positions(), prompts.segments()
    out = model(prompts.tokens, positions, segments, mode=prompt_mode, return_kv=True)
    cache = _empty(config, len(prompts.lengths), sizes.slots)
    cache = insert(cache, out.kv, positions, segments, config)
    return _first_token(model, out.hidden, cache, prompts.lengths, positions, settings, sizes)


def prefill_start(
    params: Params,
    prompts: PromptRows,
    record_positions: Int[Array, "B S"],
    record_segments: Int[Array, "B S"],
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
) -> PrefillState:
    """Prompts before the first layer, after `S` slots for records.

    Args:
      record_segments: 1, or 0 in an empty slot.
      dtype: of the records' keys and values on the device.
    """
    (B, T), S = prompts.tokens.shape, record_positions.shape[1]
    records = dataclasses.replace(
        _empty(config, B, S, dtype),
        positions=record_positions.astype(jnp.int32),
        segments=record_segments.astype(jnp.int32),
        cursor=jnp.asarray(S, jnp.int32),
    )
    return PrefillState(
        x=Transformer(config, params).embed_tokens(prompts.tokens),
        positions=prompts.positions() + record_segments.sum(axis=1, keepdims=True),
        segments=prompts.segments(),
        records=records,
        prompt_kv=_empty(config, B, T),
    )


def prefill_layer(
    params: Params,
    state: PrefillState,
    layer: Int[Array, ""],
    stack_indices: dict[str, Int[Array, ""]],
    groups: tuple[LayerRecords, ...],
    *,
    config: ModelConfig,
    kind: LayerKind,
    prompt_mode: AttentionMode,
) -> PrefillState:
    """One layer of the prompts over that layer of the records. The state's buffers are updated in
    place.

    Args:
      stack_indices: where the layer's weights are in their stacks (`parameters.stack_indices`).
      groups: this layer of the records, side by side (`RecordRows.layer`).
    """
    expanded = [group.expand(layer) for group in groups]
    k, v = expanded[0].k, expanded[0].v
    if len(expanded) > 1:
        k = jnp.concatenate([kv.k for kv in expanded], axis=3)
        v = jnp.concatenate([kv.v for kv in expanded], axis=2)
    records = state.records
    keys = place_keys(k, records.positions, records.segments, config, local=kind.local_rope)
    records = write_layer(records, layer, keys, v)
    k_scale, v_scale = (
        None if scale is None else scale[layer] for scale in (records.k_scale, records.v_scale)
    )
    cached = KeyValues(
        records.k[layer],
        records.v[layer],
        records.positions,
        records.segments,
        by_head=True,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    out = Transformer(config, params).one_layer(
        state.x,
        state.positions,
        state.segments,
        cached,
        kind=kind,
        stack_indices=stack_indices,
        mode=prompt_mode,
    )
    keys = place_keys(out.kv.k, state.positions, state.segments, config, local=kind.local_rope)
    return dataclasses.replace(
        state,
        x=out.x,
        records=_constrained(records),
        prompt_kv=_constrained(write_layer(state.prompt_kv, layer, keys, out.kv.v)),
    )


def prefill_end(
    params: Params,
    state: PrefillState,
    lengths: Int[Array, " B"],
    settings: DecodeSettings,
    *,
    config: ModelConfig,
    sizes: DecodeSizes,
) -> DecodeState:
    """Chooses the first token after the last layer. The records stay in their own cache."""
    model, (B, T, _) = Transformer(config, params), state.x.shape
    copy = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part.astype(whole.dtype), (0,) * whole.ndim
    )
    cache = _empty(config, B, sizes.slots)
    cache = KVCache(
        copy(cache.k, state.prompt_kv.k),
        copy(cache.v, state.prompt_kv.v),
        copy(cache.positions, state.positions),
        copy(cache.segments, state.segments),
        jnp.asarray(T, jnp.int32),
    )
    hidden = model.apply_final_norm(state.x)
    return _first_token(model, hidden, cache, lengths, state.positions, settings, sizes)


def decode(
    params: Params,
    state: DecodeState,
    records: KVCache | None,
    until: Int[Array, ""],
    settings: DecodeSettings,
    *,
    config: ModelConfig,
) -> DecodeState:
    """Decodes until `until` tokens are chosen or every row has ended. The state's buffers are
    updated in place."""
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
        token = sample(logits, settings.sampling, state.step)
        state = dataclasses.replace(state, cache=cache, token=token, position=state.position + 1)
        return _record(state, logits, settings.stop)

    return jax.lax.while_loop(goes_on, body, state)


prefill_step = jax.jit(prefill, static_argnames=("config", "sizes", "prompt_mode"))
prefill_start_step = jax.jit(prefill_start, static_argnames=("config", "dtype"))
prefill_layer_step = jax.jit(
    prefill_layer, static_argnames=("config", "kind", "prompt_mode"), donate_argnames=("state",)
)
prefill_end_step = jax.jit(prefill_end, static_argnames=("config", "sizes"))
decode_step = jax.jit(decode, static_argnames=("config",), donate_argnames=("state",))


def _empty(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype | None = None) -> KVCache:
    return _constrained(empty_cache(config, rows, slots, dtype))


def _constrained(cache: KVCache) -> KVCache:
    """The cache with rows and heads sharded as those of the activations, in every program alike."""
    axes = (None, "rows", "kv_heads", None, None)
    return dataclasses.replace(cache, k=constrain(cache.k, axes), v=constrain(cache.v, axes))


def _first_token(
    model: Transformer,
    hidden: Float[Array, "B T D"],
    cache: KVCache,
    lengths: Int[Array, " B"],
    positions: Int[Array, "B T"],
    settings: DecodeSettings,
    sizes: DecodeSizes,
) -> DecodeState:
    """The state after the first token, chosen from the last hidden state of each prompt."""
    B = len(lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = model.logits(last)
    shape = (B, sizes.new_tokens, logits.shape[-1])
    state = DecodeState(
        cache=cache,
        step=jnp.zeros((), jnp.int32),
        token=sample(logits, settings.sampling, jnp.zeros((), jnp.int32)),
        position=positions[:, 0] + lengths,
        done=jnp.zeros(B, bool),
        finite=jnp.ones(B, bool),
        tokens=jnp.zeros((B, sizes.new_tokens), jnp.int32),
        logits=jnp.zeros(shape, jnp.float32) if sizes.return_logits else None,
    )
    return _record(state, logits, settings.stop)


def _record(state: DecodeState, logits: Float[Array, "B V"], stop: StopConditions) -> DecodeState:
    """Stores the token just chosen, and its logits where they are kept, in the rows that have not
    ended."""
    alive = ~state.done
    write = jax.lax.dynamic_update_slice
    tokens = write(state.tokens, jnp.where(alive, state.token, 0)[:, None], (0, state.step))
    kept = state.logits
    if kept is not None:
        kept = write(kept, jnp.where(alive[:, None], logits, 0.0)[:, None], (0, state.step, 0))
    ended = jnp.any(state.token[:, None] == stop.eos[None, :], axis=1) & ~stop.ignore_eos
    # The maximum is NaN if any logit is; a single -inf is a masked token.
    finite = state.finite & (state.done | jnp.isfinite(logits.max(axis=-1)))
    step = state.step + 1
    return dataclasses.replace(
        state,
        tokens=tokens,
        logits=kept,
        done=state.done | ended | (step >= stop.length) | ~finite,
        finite=finite,
        step=step,
    )
