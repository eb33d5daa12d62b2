"""Generation: documents' records into a cache, prompts on top of them, then one token after the
other.

Sizes come from a short list of buckets, so that many questions run through few compiled programs
(`steps.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.inference.records import SHORTEST_PIECES, KVRecord, Positions, load_records
from grit_jax.inference.row_packing import bucket
from grit_jax.inference.sampling import GREEDY, Sampling, sampling_rows
from grit_jax.inference.steps import (
    DecodeState,
    PrefillState,
    StopConditions,
    decode_step,
    prefill_end_step,
    prefill_layer_step,
    prefill_start_step,
    prefill_step,
)
from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import stack_indices
from grit_jax.models.transformer import Params
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.types import AttentionMode

ROWS_PER_CALL = (
    16  # prompts decoded together, fewer where their cache would be larger than this many bytes
)
MOST_CACHE_BYTES = 4 * 2**30
SHORTEST_PROMPT, SHORTEST_ANSWER = 32, 16  # smallest buckets, in tokens
SLOTS = 128  # a cache for prompts and answers has a multiple of so many

OnTokens = Callable[[int, list[int]], None]


@dataclasses.dataclass
class Timings:
    """Seconds: waiting for records, prompts read (first token included), other tokens decoded."""

    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass
class Generation:
    """New tokens of each prompt, without the end of sequence, and why each ended.

    `logits[b, i]` are those that the token number `i` of prompt `b` was chosen from (that of the
    end of sequence included), zeros after the end.
    """

    tokens: list[list[int]]
    finished: list[Literal["stop", "length"]]
    timings: Timings
    logits: Float[np.ndarray, "B new V"] | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt with what stands before it and how it is to be continued."""

    number: int
    prompt: Sequence[int]
    pieces: Sequence[KVRecord]
    sampling: Sampling

    @property
    def cached(self) -> int:
        """Tokens of the pieces."""
        return sum(len(piece.tokens) for piece in self.pieces)


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    pieces: Sequence[Sequence[KVRecord]] | None = None,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    eos_ids: Sequence[int] = (),
    return_logits: bool = False,
    rows_per_call: int = ROWS_PER_CALL,
    mesh: Mesh | None = None,
    progress: bool = False,
    on_tokens: OnTokens | None = None,
    stream_every: int = 1,
    mode: AttentionMode = AttentionMode.CAUSAL,
    int8_records: bool = False,
    positions: Positions = "running",
) -> Generation:
    """Continues prompts, each after its own cached pieces.

    Prompts of similar length are decoded together; results are in the order given, whatever the
    company.

    Args:
      prompts: token ids, at least one each.
      pieces: for each prompt the records that stand before it, in order: positions run through them
        and on through the prompt, as if it were one text (`positions` "colliding": each record's
        begin at 0, as in the original).
      sampling: one setting for all prompts or one for each.
      eos_ids: tokens that end an answer.
      on_tokens: called with (number of the prompt, its new tokens) every `stream_every` tokens.
      mode: how the model generates; PREFIX reads a prompt bidirectionally, as a prefix language
        model was trained to.
      int8_records: keep the records' keys and values on the device as int8, in a scale for each key
        channel and each value: a quarter of float32 to hold, and to read once a token.

    Raises:
      GritError: an empty prompt, an id outside the vocabulary, or a record of another model.
    """
    config = dataclasses.replace(config, remat="none")  # no backward pass here
    requests = _requests(prompts, pieces, sampling, config)
    result = Generation([[] for _ in prompts], ["length"] * len(prompts), Timings())
    logits: list[tuple[list[int], np.ndarray]] = []
    with show_progress(len(requests), "generate", "answers", quiet=not progress) as bar:
        for batch in _batches(requests, config, rows_per_call):
            with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
                one = _Batch(
                    params,
                    config,
                    batch,
                    list(eos_ids),
                    return_logits,
                    mode,
                    int8_records,
                    positions,
                )
                found = one.run(result, on_tokens, stream_every)
            if found is not None:
                logits.append(([request.number for request in batch], found))
            bar.update(len(batch))
    if return_logits:
        longest = max((found.shape[1] for _, found in logits), default=0)
        result.logits = np.zeros((len(prompts), longest, config.vocab_size), np.float32)
        for numbers, found in logits:
            result.logits[numbers, : found.shape[1]] = found
    return result


def _requests(prompts, pieces, sampling, config: ModelConfig) -> list[Request]:
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    pieces = pieces if pieces is not None else [()] * len(prompts)
    if len(settings) != len(prompts) or len(pieces) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(settings)} samplings, {len(pieces)} lists of pieces"
        )
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise GritError(f"prompt {i} is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise GritError(
                f"prompt {i} has a token id outside the vocabulary (0 to {config.vocab_size - 1})"
            )
    return [
        Request(i, *parts) for i, parts in enumerate(zip(prompts, pieces, settings, strict=True))
    ]


def _batches(
    requests: Sequence[Request], config: ModelConfig, rows_per_call: int
) -> Iterator[list[Request]]:
    """Requests that are decoded together: alike in length, and no more than fit the memory."""
    batch: list[Request] = []
    longest = 0
    for request in sorted(
        requests, key=lambda r: (bucket(r.cached, SHORTEST_PIECES), len(r.prompt))
    ):
        mine = request.cached + len(request.prompt) + request.sampling.max_new_tokens
        longest = max(longest, mine)
        full = len(batch) == rows_per_call or not cache_fits(config, len(batch) + 1, longest)
        if batch and full:
            yield batch
            batch, longest = [], mine
        batch.append(request)
    if batch:
        yield batch


def cache_fits(config: ModelConfig, rows: int, length: int) -> bool:
    """Whether so many rows of that length may be decoded together."""
    c = config
    slot = (
        2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * jnp.dtype(c.dtype).itemsize
    )
    return _padded(rows) * length * slot <= MOST_CACHE_BYTES


def _padded(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


class _Batch:
    """One run of the compiled programs over a few requests."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        requests: list[Request],
        eos_ids: list[int],
        return_logits: bool,
        mode: AttentionMode,
        int8_records: bool,
        positions: Positions,
    ):
        self.params, self.config, self.requests = params, config, requests
        self.eos_ids, self.return_logits = eos_ids, return_logits
        self.int8_records, self.positions = int8_records, positions
        prefix = mode is AttentionMode.PREFIX
        self.prompt_mode = AttentionMode.BIDIRECTIONAL if prefix else AttentionMode.CAUSAL
        self.answers: list[list[int]] = [[] for _ in requests]
        self.ended = [False] * len(requests)

    def run(
        self, result: Generation, on_tokens: OnTokens | None, stream_every: int
    ) -> np.ndarray | None:
        """Fills `result` at the requests' numbers; the logits `[b, new, V]` if they are wanted."""
        start = time.perf_counter()
        rows = _padded(len(self.requests))
        # The rows that fill the batch up have one token to read and end with their first one.
        longest = max(request.sampling.max_new_tokens for request in self.requests)
        limits, ignore = np.ones(rows, np.int32), np.zeros(rows, bool)
        tokens = np.zeros(
            (rows, bucket(max(len(r.prompt) for r in self.requests), SHORTEST_PROMPT)), np.int32
        )
        lengths = np.ones(rows, np.int32)
        for r, request in enumerate(self.requests):
            limits[r], ignore[r] = request.sampling.max_new_tokens, request.sampling.ignore_eos
            tokens[r, : len(request.prompt)], lengths[r] = request.prompt, len(request.prompt)
        fillers = [self.requests[-1].sampling] * (rows - len(self.requests))
        sampling = sampling_rows([*(request.sampling for request in self.requests), *fillers])
        limit = StopConditions(limits, ignore, np.asarray(self.eos_ids or [-1], np.int32))  # type: ignore[arg-type]
        new_tokens = bucket(longest, SHORTEST_ANSWER)
        how: dict[str, Any] = {
            "config": self.config,
            "slots": round_up(tokens.shape[1] + new_tokens, SLOTS),
            "new_tokens": new_tokens,
            "return_logits": self.return_logits,
        }
        records, waited = None, 0.0
        if any(len(request.pieces) for request in self.requests):
            read, waited = self._read_over_records(tokens, lengths)
            records = read.records
            state = prefill_end_step(self.params, read, lengths, sampling, limit, **how)
            del read
        else:
            state = prefill_step(
                self.params, tokens, lengths, sampling, limit, prompt_mode=self.prompt_mode, **how
            )
        state.token.block_until_ready()
        result.timings.load += waited
        result.timings.prefill += (after := time.perf_counter()) - start - waited

        told = 0
        while True:
            # Read before the state is handed on: its buffers are gone afterwards.
            step, finished = int(state.step), bool(np.asarray(state.done).all())
            if on_tokens is not None or finished:
                self._collect(state, told, step, on_tokens)
                told = step
            if finished:
                break
            until = step + stream_every if on_tokens is not None else new_tokens
            state = decode_step(
                self.params, state, records, np.int32(until), sampling, limit, config=self.config
            )
        result.timings.decode += time.perf_counter() - after
        for request, answer, ended in zip(self.requests, self.answers, self.ended, strict=True):
            result.tokens[request.number] = answer
            result.finished[request.number] = "stop" if ended else "length"
        return np.asarray(state.logits)[: len(self.requests), :step] if self.return_logits else None

    def _read_over_records(
        self, tokens: np.ndarray, lengths: np.ndarray
    ) -> tuple[PrefillState, float]:
        """Takes the prompts through all layers, and the seconds that this waited for records.

        Layers are handed to the device as they come, and it works on one while the next one is on
        its way.
        """
        config, began = self.config, time.perf_counter()
        loaded = load_records(
            [request.pieces for request in self.requests], config, len(lengths), self.positions
        )
        waited = time.perf_counter() - began
        state = prefill_start_step(
            self.params,
            tokens,
            lengths,
            loaded.positions,
            loaded.segments,
            config=config,
            dtype=jnp.dtype(jnp.int8 if self.int8_records else config.dtype),
        )
        for layer, kind in enumerate(config.layer_kinds):
            began = time.perf_counter()
            records = jax.device_put(loaded.layer(layer))
            waited += time.perf_counter() - began
            where = stack_indices(self.params, config.layer_kinds, layer)
            state = prefill_layer_step(
                self.params,
                state,
                np.int32(layer),
                {name: np.int32(at) for name, at in where.items()},
                records,
                loaded.codecs,
                config=config,
                kind=kind,
                prompt_mode=self.prompt_mode,
            )
        return state, waited

    def _collect(
        self, state: DecodeState, told: int, step: int, on_tokens: OnTokens | None
    ) -> None:
        """Takes what belongs to the answers of the tokens number `told` to `step`."""
        # Cut on the host: on the device every new size would be compiled.
        found = np.asarray(state.tokens)[: len(self.requests), told:step]
        for r, request in enumerate(self.requests):
            if self.ended[r]:
                continue
            fresh = found[r].tolist()[: request.sampling.max_new_tokens - len(self.answers[r])]
            if not request.sampling.ignore_eos:
                end = next((n for n, token in enumerate(fresh) if token in self.eos_ids), None)
                self.ended[r] = end is not None
                fresh = fresh[:end]
            self.answers[r] += fresh
            if on_tokens is not None and fresh:
                on_tokens(request.number, fresh)
