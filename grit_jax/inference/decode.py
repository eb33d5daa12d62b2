"""Generation: documents' records into a cache, the prompt on top of them, then one token after the other.

Prefill and decode are two compiled programs. Decode is a `lax.while_loop` whose cache is updated in place; sizes
come from a short list of buckets, so that many questions run through few programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grit_jax.data.packing import round_up
from grit_jax.inference.plan import bucket
from grit_jax.inference.sampling import Sampling, SamplingRows, sample, sampling_rows
from grit_jax.models.cache import KVCache, cache_from, empty_cache, insert
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params, Transformer
from grit_jax.types import KV, AttentionMode, DocumentKV, GritError

CAUSAL = AttentionMode.CAUSAL

ROWS_PER_CALL = 16  # prompts decoded together
SHORTEST_PROMPT, SHORTEST_PIECES, SHORTEST_ANSWER = 32, 128, 16  # smallest buckets, in tokens
BLOCK = 512  # the attention kernel reads long caches in blocks of so many slots; other lengths it would have to copy


@dataclasses.dataclass
class Timings:
    """Seconds: records assembled and brought to the device, prompts read (first token included), tokens decoded."""

    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass
class Generation:
    """New tokens of each prompt, without the end of sequence, and why each ended.

    `logits[b, i]` are those that the token number `i` of prompt `b` was chosen from (that of the end of sequence
    included), zeros after the end.
    """

    tokens: list[list[int]]
    finished: list[Literal["stop", "length"]]
    timings: Timings
    logits: Float[np.ndarray, "B new V"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Loaded:
    """Pieces of `B` rows side by side, as they were stored (keys unrotated), and where each token is to stand.

    `positions` continue from piece to piece; `segments` are 1, or 0 in empty slots.
    """

    kv: KV
    positions: Int[Array, "B P"]
    segments: Int[Array, "B P"]


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
) -> DecodeState:
    """Reads right-padded prompts causally on top of the loaded pieces and chooses the first token.

    Args:
      slots: capacity of the cache, at least `P + T + new_tokens`.
    """
    B, T = tokens.shape
    model = Transformer(config, params)
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    segments = (places < lengths[:, None]).astype(jnp.int32)
    cache, offset = None, jnp.zeros(B, jnp.int32)
    if loaded is not None:
        offset = loaded.segments.sum(axis=1)
        cache = cache_from(loaded.kv, loaded.positions, loaded.segments, config)
    positions = offset[:, None] + places
    out = model(tokens, positions, segments, mode=CAUSAL, cache=cache, return_kv=True)
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


prefill_step = jax.jit(prefill, static_argnames=("config", "slots", "new_tokens", "return_logits"))
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


def load_pieces(
    pieces: Sequence[Sequence[DocumentKV]], config: ModelConfig, rows: int | None = None, slots: int | None = None
) -> Loaded:
    """Records of each row side by side in one host array, in the order given.

    Args:
      rows, slots: the shape of the result, from buckets unless told; at least what is needed.

    Raises:
      GritError: a record of another model's shape.
    """
    c = config
    totals = [sum(len(piece.tokens) for piece in row) for row in pieces]
    P = slots or bucket(max(totals, default=1), SHORTEST_PIECES)
    B = rows or len(pieces)
    shape = (c.num_hidden_layers, B, P, c.num_key_value_heads, c.head_dim)
    dtype = jnp.dtype(c.dtype)
    k, v = np.zeros(shape, dtype), np.zeros(shape, dtype)
    positions, segments = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
    for r, row in enumerate(pieces):
        a = 0
        for number, piece in enumerate(row):
            b = a + len(piece.tokens)
            expected = (shape[0], b - a, *shape[3:])
            if piece.k.shape != expected or piece.v.shape != expected:
                raise GritError(
                    f"prompt {r}, piece {number}: its cache has shape {piece.k.shape}, this model's would have "
                    f"{expected}; it was made by another model: encode it again"
                )
            k[:, r, a:b], v[:, r, a:b] = piece.k, piece.v
            a = b
        positions[r, :a] = np.arange(a)
        segments[r, :a] = 1
    return Loaded(KV(k, v), positions, segments)  # type: ignore[arg-type]


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    pieces: Sequence[Sequence[DocumentKV]] | None = None,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    eos_ids: Sequence[int] = (),
    return_logits: bool = False,
    rows_per_call: int = ROWS_PER_CALL,
    mesh: Mesh | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    stream_every: int = 1,
) -> Generation:
    """Continues prompts, each after its own cached pieces.

    Prompts of similar length are decoded together; results are in the order given and do not depend on the company.

    Args:
      prompts: token ids, at least one each.
      pieces: for each prompt the records that stand before it, in order: positions run through them and on through
        the prompt, as if it were one text.
      sampling: one setting for all prompts or one for each.
      eos_ids: tokens that end an answer.
      on_tokens: called with (number of the prompt, its new tokens) every `stream_every` tokens.

    Raises:
      GritError: an empty prompt, an id outside the vocabulary, or a record of another model.
    """
    config = dataclasses.replace(config, remat="none")  # no backward pass here
    requests = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    pieces = pieces if pieces is not None else [()] * len(prompts)
    if len(requests) != len(prompts) or len(pieces) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(requests)} samplings, {len(pieces)} lists of pieces")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise GritError(f"prompt {i} is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise GritError(f"prompt {i} has a token id outside the vocabulary (0 to {config.vocab_size - 1})")
    cached = [sum(len(piece.tokens) for piece in row) for row in pieces]
    order = sorted(range(len(prompts)), key=lambda i: (cached[i] + len(prompts[i]), i))
    result = Generation([[] for _ in prompts], ["length"] * len(prompts), Timings())
    parts: list[tuple[list[int], np.ndarray]] = []
    for start in range(0, len(order), rows_per_call):
        chosen = order[start : start + rows_per_call]
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            logits = _generate_together(
                params, config, chosen, prompts, pieces, requests, list(eos_ids), return_logits, result, on_tokens,
                stream_every,
            )  # fmt: skip
        if logits is not None:
            parts.append((chosen, logits))
    if return_logits:
        longest = max((logits.shape[1] for _, logits in parts), default=0)
        result.logits = np.zeros((len(prompts), longest, config.vocab_size), np.float32)
        for chosen, logits in parts:
            result.logits[chosen, : logits.shape[1]] = logits
    return result


def _generate_together(
    params, config, chosen, prompts, pieces, requests, eos_ids, return_logits, result, on_tokens, stream_every
) -> np.ndarray | None:
    """One batch: fills `result` at `chosen` and returns its logits if they are wanted."""
    start = time.perf_counter()
    rows = 1 << (len(chosen) - 1).bit_length()
    # Rows that fill the batch up repeat the last prompt without pieces and end at their first token.
    mine = [prompts[i] for i in chosen]
    limit = np.ones(rows, np.int32)
    limit[: len(chosen)] = [requests[i].max_new_tokens for i in chosen]
    ignore = np.zeros(rows, bool)
    ignore[: len(chosen)] = [requests[i].ignore_eos for i in chosen]
    settings = [requests[i] for i in chosen] + [requests[chosen[-1]]] * (rows - len(chosen))
    width = bucket(max(map(len, mine)), SHORTEST_PROMPT)
    tokens = np.zeros((rows, width), np.int32)
    lengths = np.ones(rows, np.int32)
    for r, prompt in enumerate(mine):
        tokens[r, : len(prompt)], lengths[r] = prompt, len(prompt)
    loaded = None
    if any(len(pieces[i]) for i in chosen):
        loaded = jax.device_put(load_pieces([pieces[i] for i in chosen], config, rows))
        jax.block_until_ready(loaded)
    new_tokens = bucket(int(limit.max()), SHORTEST_ANSWER)
    slots = (loaded.positions.shape[1] if loaded is not None else 0) + width + new_tokens
    slots = round_up(slots, BLOCK if slots > 2 * BLOCK else 128)
    sampling = sampling_rows(settings)
    limits = Limits(limit, ignore, np.asarray(eos_ids or [-1], np.int32))  # type: ignore[arg-type]
    result.timings.load += (now := time.perf_counter()) - start

    state = prefill_step(
        params, tokens, lengths, loaded, sampling, limits,
        config=config, slots=slots, new_tokens=new_tokens, return_logits=return_logits,
    )  # fmt: skip
    state.token.block_until_ready()
    result.timings.prefill += (after := time.perf_counter()) - now
    told = 0
    answers: list[list[int]] = [[] for _ in chosen]
    ended = [False] * len(chosen)
    while True:
        # Read before the state is handed on: its buffers are gone afterwards.
        step, finished = int(state.step), bool(np.asarray(state.done).all())
        if on_tokens is not None or finished:
            found = np.asarray(state.tokens[: len(chosen), told:step])
            for r, i in enumerate(chosen):
                fresh = _answer(found[r].tolist(), requests[i], eos_ids, len(answers[r]), ended[r])
                answers[r] += fresh.tokens
                if fresh.stopped:
                    ended[r], result.finished[i] = True, "stop"
                if on_tokens is not None and fresh.tokens:
                    on_tokens(i, fresh.tokens)
            told = step
        if finished:
            break
        until = step + stream_every if on_tokens is not None else new_tokens
        state = decode_step(params, state, np.int32(until), sampling, limits, config=config)
    result.timings.decode += time.perf_counter() - after
    for r, i in enumerate(chosen):
        result.tokens[i] = answers[r]
    return np.asarray(state.logits[: len(chosen), : int(state.step)]) if return_logits else None


@dataclasses.dataclass
class _Fresh:
    tokens: list[int]
    stopped: bool


def _answer(found: list[int], request: Sampling, eos_ids: Sequence[int], have: int, ended: bool) -> _Fresh:
    """What of newly decoded tokens belongs to the answer."""
    if ended:
        return _Fresh([], False)
    found = found[: request.max_new_tokens - have]
    if not request.ignore_eos:
        end = next((n for n, token in enumerate(found) if token in eos_ids), None)
        if end is not None:
            return _Fresh(found[:end], True)
    return _Fresh(found, False)
