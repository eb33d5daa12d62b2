"""The compiled programs of the engine: insert records, prefill prompts, generate tokens.

All of them update one `EngineState` in place. A prompt is read in chunks of a few fixed lengths,
into one slot of each share of the mesh (see `slot_cache`); how a prompt is cut into chunks depends
on its own length alone. A prompt over records is read layer by layer, so that a layer computes
while later ones are still being loaded from the store. `generate` is a `lax.while_loop` over all
slots, which runs for a few tokens or to the end of the answers.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.inference.engine_state import (
    CAUSAL,
    Chosen,
    EngineState,
    LastChunk,
    PromptChunk,
    empty_state,
)
from grit_jax.inference.logprobs import no_logprobs, wanted_logprobs
from grit_jax.inference.records import LayerRecords
from grit_jax.inference.sampling import is_end, sample
from grit_jax.models.adapter_stack import choose
from grit_jax.models.cache import place_keys, rotate_keys
from grit_jax.models.config import LayerKind, ModelConfig
from grit_jax.models.slot_cache import (
    SlotRows,
    Span,
    append,
    constrained,
    mark_span,
    pick,
    put,
    write_span,
)
from grit_jax.models.transformer import Params, Transformer
from grit_jax.types import KV

STEPS = 16  # most tokens of a slot in one call of `generate`


def insert_records(
    state: EngineState,
    layer: Int[Array, ""],
    positions: Int[Array, "P S"],
    span: Span,
    records: tuple[LayerRecords, ...],
    order: Int[Array, " S"] | None,
    *,
    config: ModelConfig,
    local_rope: bool,
) -> EngineState:
    """Writes one layer of a slot's records, rotated to `positions`, from the start of the slot on.

    Args:
      positions: of the records' tokens as they are stored, without gaps.
      records: this layer of the slot's records, side by side (`RecordRows.layer`), one row for all
        shares; `span` says whose it is.
      order: where several groups stand side by side, the indices of their tokens, which leave out
        the padding between them.
    """
    target = state.records if state.records is not None else state.cache
    P = len(span.local)
    expanded = [group.expand(layer) for group in records]
    k = jnp.concatenate([kv.k for kv in expanded], axis=3)
    v = jnp.concatenate([kv.v for kv in expanded], axis=2)
    if order is not None:
        k, v = k[..., order], v[..., order, :]
    S = target.capacity  # beyond it there is only padding
    k, v, positions = k[..., :S], v[..., :S, :], positions[:, :S]
    halves = place_keys(k, positions, jnp.ones_like(positions), config, local=local_rope)
    finite = jnp.isfinite(k).all() & jnp.isfinite(v).all()
    spread = lambda x: jnp.broadcast_to(x[None], (1, P, *x.shape[1:]))
    target = write_span(
        target, spread(jnp.concatenate(halves, axis=2)), spread(v), span, first_layer=layer
    )
    # The first layer begins a request; the others may only find that it is not finite.
    marked = mark_span(target, positions, span, jnp.broadcast_to(finite, (P,)))
    before = pick(target.finite, span.local) | (layer == 0)
    ok = put(target.finite, span.local, before & finite, span.count > 0)
    target = constrained(dataclasses.replace(marked, finite=ok))
    return dataclasses.replace(
        state, **{"records" if state.records is not None else "cache": target}
    )


def insert_whole(
    state: EngineState,
    positions: Int[Array, "P S"],
    span: Span,
    records: tuple[LayerRecords, ...],
    order: Int[Array, " S"] | None,
    *,
    config: ModelConfig,
) -> EngineState:
    """All layers of a slot's records at once: as `insert_records` for each layer.

    Args:
      records: arrays `[L 1 ..]`.
    """
    target = state.records if state.records is not None else state.cache
    expanded = [group.expand_all() for group in records]
    k = jnp.concatenate([kv.k for kv in expanded], axis=4)
    v = jnp.concatenate([kv.v for kv in expanded], axis=3)
    if order is not None:
        k, v = k[..., order], v[..., order, :]
    S = target.capacity  # beyond it there is only padding
    k, v, positions = k[..., :S], v[..., :S, :], positions[:, :S]
    P, one = len(span.local), positions[:1]
    finite = jnp.isfinite(k).all() & jnp.isfinite(v).all()
    k = rotate_keys(KV(k, v), one, jnp.ones_like(one), config)
    spread = lambda x: jnp.broadcast_to(x, (x.shape[0], P, *x.shape[2:]))
    target = write_span(target, spread(k), spread(v), span)
    target = constrained(mark_span(target, positions, span, jnp.broadcast_to(finite, (P,))))
    return dataclasses.replace(
        state, **{"records" if state.records is not None else "cache": target}
    )


def prefill(
    params: Params,
    state: EngineState,
    chunk: PromptChunk,
    last: LastChunk,
    *,
    config: ModelConfig,
) -> tuple[EngineState, Chosen]:
    """Reads a chunk of a prompt after what its slot holds, and chooses the first token after a
    last one.
    """
    model = Transformer(config, choose(params, chunk.adapters))
    positions, segments = _positions(state, chunk), chunk.segments
    out = model(
        chunk.tokens,
        positions,
        segments,
        mode=chunk.mode,
        cache=_slots_before(state, chunk.span),
        return_kv=True,
    )
    kv = out.kv
    assert kv is not None
    k = rotate_keys(kv, positions, segments, config)
    seen = segments[None, :, None, None, :] > 0
    finite = (jnp.isfinite(k) | ~seen).all(axis=(0, 2, 3, 4))
    finite &= (jnp.isfinite(kv.v) | ~seen.swapaxes(3, 4)).all(axis=(0, 2, 3, 4))
    cache = mark_span(write_span(state.cache, k, kv.v, chunk.span), positions, chunk.span, finite)
    state = dataclasses.replace(state, cache=constrained(cache))
    return _first_token(model, state, out.hidden, chunk, last)


def prefill_start(
    params: Params, chunk: PromptChunk, *, config: ModelConfig
) -> Float[Array, "P T D"]:
    """The chunk before the first layer. For chunks that are read layer by layer."""
    return Transformer(config, params).embed_tokens(chunk.tokens)


def prefill_layer(
    params: Params,
    state: EngineState,
    x: Float[Array, "P T D"],
    chunk: PromptChunk,
    layer: Int[Array, ""],
    stack_indices: dict[str, Int[Array, ""]] | None,
    *,
    config: ModelConfig,
    kind: LayerKind,
) -> tuple[EngineState, Float[Array, "P T D"]]:
    """One layer of a chunk over what that layer of its slot holds.

    Args:
      stack_indices: where the layer's weights are in their stacks (`parameters.stack_indices`);
        None: `params` has those of the layer alone (`layer_weights.weights_of_layer`).
    """
    positions, segments = _positions(state, chunk), chunk.segments
    out = Transformer(config, choose(params, chunk.adapters)).one_layer(
        x,
        positions,
        segments,
        _slots_before(state, chunk.span),
        layer=layer,
        kind=kind,
        stack_indices=dict.fromkeys(params, 0) if stack_indices is None else stack_indices,
        mode=chunk.mode,
    )
    halves = place_keys(out.kv.k, positions, segments, config, local=kind.local_rope)
    k = jnp.concatenate(halves, axis=2)
    seen = segments[:, None, None, :] > 0
    finite = (jnp.isfinite(k) | ~seen).all(axis=(1, 2, 3))
    finite &= (jnp.isfinite(out.kv.v) | ~seen.swapaxes(2, 3)).all(axis=(1, 2, 3))
    # What is written depends on the layer's output: otherwise XLA writes before attention reads,
    # and copies all slots for it (on a CPU 80 ms a layer for 200 MB of slots).
    through = jnp.isfinite(out.x).all(axis=-1)
    k = jnp.where(through[:, None, None, :], k, 0)
    v = jnp.where(through[:, None, :, None], out.kv.v, 0)
    finite &= (through | (segments == 0)).all(axis=1)
    cache = write_span(state.cache, k[None], v[None], chunk.span, first_layer=layer)
    active = chunk.span.count > 0
    # Lengths are those before the chunk until its last layer is done (`prefill_end`).
    before = pick(cache.finite, chunk.span.local) | ((layer == 0) & (chunk.span.start == 0))
    ok = put(cache.finite, chunk.span.local, before & finite, active)
    cache = constrained(dataclasses.replace(cache, finite=ok))
    return dataclasses.replace(state, cache=cache), out.x


def prefill_end(
    params: Params,
    state: EngineState,
    x: Float[Array, "P T D"],
    chunk: PromptChunk,
    last: LastChunk,
    *,
    config: ModelConfig,
) -> tuple[EngineState, Chosen]:
    """What `prefill` does after the last layer."""
    model = Transformer(config, params)
    span, finite = chunk.span, pick(state.cache.finite, chunk.span.local)
    cache = mark_span(state.cache, _positions(state, chunk), span, finite)
    cache = dataclasses.replace(cache, finite=put(cache.finite, span.local, finite))
    state = dataclasses.replace(state, cache=constrained(cache))
    return _first_token(model, state, model.apply_final_norm(x), chunk, last)


def generate(
    params: Params,
    state: EngineState,
    steps: Int[Array, ""],
    eos: Int[Array, " n"] | Int[Array, "A n"],
    stop_early: Bool[Array, ""],
    *,
    config: ModelConfig,
    return_logits: bool = False,
) -> tuple[EngineState, Chosen]:
    """Up to `steps` more tokens (at most `STEPS`) in every active slot.

    Args:
      eos: tokens that end an answer; -1 matches nothing. Those of each adapter where the weights
        have adapters, the base's first.
      stop_early: return as soon as an answer ends, since a request waits for its slot.
    """
    model, B = Transformer(config, choose(params, state.adapters)), len(state.token)
    eos = _ends_of(eos, state.adapters)
    started = state.active
    tokens = jnp.zeros((B, STEPS), jnp.int32)
    logits = jnp.zeros((B, STEPS, config.vocab_size), jnp.float32) if return_logits else None
    counts = jnp.zeros(B, jnp.int32)
    adjusts = state.adjustments is not None
    logprobs = no_logprobs((B, STEPS), config.vocab_size) if adjusts else None

    def goes_on(carry: tuple) -> jax.Array:
        step, state, *_ = carry
        ended = (started & ~state.active).any() & stop_early
        return (step < steps) & state.active.any() & ~ended

    def body(carry: tuple) -> tuple:
        step, state, tokens, counts, kept, logprobs = carry
        active = state.active
        caches = [cache for cache in (state.records, state.cache) if cache is not None]
        lengths = [jnp.where(active, cache.lengths, 0) for cache in caches]
        position = functools.reduce(jnp.add, lengths)
        out = model(
            state.token[:, None],
            position[:, None],
            jnp.ones((B, 1), jnp.int32),
            mode=CAUSAL,
            cache=SlotRows(caches, lengths),
            return_kv=True,
        )
        kv = out.kv
        assert kv is not None
        k = rotate_keys(kv, position[:, None], jnp.ones((B, 1), jnp.int32), config)
        cache = append(state.cache, k[..., 0], kv.v[..., 0, :], position, active)
        logits = model.logits(out.hidden[:, 0])
        adjustments = state.adjustments
        chosen_from = logits if adjustments is None else adjustments.apply(logits, active)
        token = sample(chosen_from, state.settings.sampling, state.count)
        if adjustments is not None:
            adjustments = adjustments.count(token, active)
            new = wanted_logprobs(logits, token, adjustments.logprobs & active)
            logprobs = logprobs.with_column(new, step)
        ok = _is_finite(logits) & cache.finite
        # Written where the slot's answer goes on; all active slots are at the same step.
        tokens = jax.lax.dynamic_update_slice(
            tokens, jnp.where(active, token, 0)[:, None], (0, step)
        )
        if kept is not None:
            kept = jax.lax.dynamic_update_slice(kept, logits[:, None], (0, step, 0))
        count = state.count + active
        ended = is_end(token, eos) & ~state.settings.ignore_eos
        ended |= (count >= state.settings.limit) | ~ok
        state = dataclasses.replace(
            state,
            cache=constrained(cache),
            token=jnp.where(active, token, state.token),
            count=count,
            active=active & ~ended,
            finite=state.finite & (ok | ~active),
            adjustments=adjustments,
        )
        return step + 1, state, tokens, counts + active, kept, logprobs

    _, state, tokens, counts, logits, logprobs = jax.lax.while_loop(
        goes_on, body, (jnp.zeros((), jnp.int32), state, tokens, counts, logits, logprobs)
    )
    return state, Chosen(tokens, counts, state.active, state.finite, logits, logprobs)


def open_slot(state: EngineState, span: Span) -> EngineState:
    """Empties the slots of a span for new requests, where records have a cache of their own."""
    if state.records is None:
        return state
    empty = mark_span(state.records, jnp.zeros((len(span.local), 1), jnp.int32), span)
    lengths = put(empty.lengths, span.local, span.start, span.count > 0)
    return dataclasses.replace(state, records=dataclasses.replace(empty, lengths=lengths))


def release(state: EngineState, keep: Bool[Array, " B"]) -> EngineState:
    """Ends the answers of the slots that are not kept."""
    return dataclasses.replace(state, active=state.active & keep)


empty_state_step = jax.jit(empty_state, static_argnames=("config", "shape"))
insert_records_step = jax.jit(
    insert_records, static_argnames=("config", "local_rope"), donate_argnames=("state",)
)
insert_whole_step = jax.jit(insert_whole, static_argnames=("config",), donate_argnames=("state",))
prefill_step = jax.jit(prefill, static_argnames=("config",), donate_argnames=("state",))
prefill_start_step = jax.jit(prefill_start, static_argnames=("config",))
prefill_layer_step = jax.jit(
    prefill_layer, static_argnames=("config", "kind"), donate_argnames=("state", "x")
)
prefill_end_step = jax.jit(prefill_end, static_argnames=("config",), donate_argnames=("state",))
generate_step = jax.jit(
    generate, static_argnames=("config", "return_logits"), donate_argnames=("state",)
)
open_slot_step = jax.jit(open_slot, donate_argnames=("state",))
release_step = jax.jit(release, donate_argnames=("state",))


def _positions(state: EngineState, chunk: PromptChunk) -> Int[Array, "P T"]:
    """Rotary positions of a chunk: after the records and what the slot holds."""
    start = chunk.span.start
    if state.records is not None:
        start = start + pick(state.records.lengths, chunk.span.local)
    return start[:, None] + jnp.arange(chunk.tokens.shape[1])


def _slots_before(state: EngineState, span: Span) -> SlotRows:
    """What a chunk reads: the records, and what is before it in its slot."""
    caches, lengths = [state.cache], [jnp.where(span.count > 0, span.start, 0)]
    if state.records is not None:
        caches.insert(0, state.records)
        lengths.insert(0, jnp.where(span.count > 0, pick(state.records.lengths, span.local), 0))
    return SlotRows(caches, lengths, span.local)


def _first_token(
    model: Transformer,
    state: EngineState,
    hidden: Float[Array, "P T D"],
    chunk: PromptChunk,
    last: LastChunk,
) -> tuple[EngineState, Chosen]:
    """The first token after a last chunk, chosen from the prompt's last hidden state."""
    span, settings, adapters = chunk.span, last.settings, state.adapters
    ends = jnp.take_along_axis(hidden, jnp.maximum(span.count - 1, 0)[:, None, None], axis=1)
    logits = model.logits(ends[:, 0])
    rows, adjustments, logprobs = last.adjustments, state.adjustments, None
    chosen_from = logits if rows is None else rows.apply(logits)
    token = sample(chosen_from, settings.sampling, jnp.zeros_like(span.count))
    if adjustments is not None and rows is not None:
        wanted = rows.logprobs & last.here
        logprobs = wanted_logprobs(logits, token, wanted, rows.labels)[:, None]
        adjustments = adjustments.begin(rows, token, span.local, last.here)
    finite = _is_finite(logits) & pick(state.cache.finite, span.local)
    if state.records is not None:
        finite &= pick(state.records.finite, span.local)
    ended = (
        (is_end(token, _ends_of(last.eos, chunk.adapters)) & ~settings.ignore_eos)
        | (settings.limit <= 1)
        | ~finite
    )
    at = lambda whole, part: put(whole, span.local, part, last.here)
    state = dataclasses.replace(
        state,
        token=at(state.token, token),
        count=at(state.count, jnp.ones_like(token)),
        active=at(state.active, ~ended),
        finite=at(state.finite, finite),
        settings=jax.tree.map(at, state.settings, settings),
        adjustments=adjustments,
        adapters=None if adapters is None else at(adapters, chunk.adapters),
    )
    chosen = Chosen(token[:, None], jnp.ones_like(token), ~ended, finite, logits[:, None], logprobs)
    return state, chosen


def _ends_of(
    eos: Int[Array, " n"] | Int[Array, "A n"], adapters: Int[Array, " B"] | None
) -> Int[Array, " n"] | Int[Array, "B n"]:
    """The tokens that end each answer."""
    return eos if adapters is None else eos[adapters]


def _is_finite(logits: Float[Array, "B V"]) -> Bool[Array, " B"]:
    """The maximum is NaN if any logit is; a single -inf is a masked token."""
    return jnp.isfinite(logits.max(axis=-1))
