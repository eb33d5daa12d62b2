"""Generation: prompts, each after its own records, are read and then continued token by token.

Sizes come from a short list of buckets, so that many questions run through few compiled programs
(`steps.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.inference.records import (
    SHORTEST_RECORDS,
    KVRecord,
    LayerRecords,
    Positions,
    load_records,
)
from grit_jax.inference.row_packing import bucket
from grit_jax.inference.sampling import GREEDY, Sampling, sampling_rows
from grit_jax.inference.steps import (
    DecodeSettings,
    DecodeSizes,
    DecodeState,
    PrefillState,
    PromptRows,
    StopConditions,
    decode_step,
    prefill_end_step,
    prefill_layer_step,
    prefill_start_step,
    prefill_step,
)
from grit_jax.models.cache import KVCache, check_records
from grit_jax.models.config import ModelConfig
from grit_jax.models.finite import describe_cause
from grit_jax.models.parameters import stack_indices
from grit_jax.models.transformer import Params
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.text.length import DefaultLength
from grit_jax.types import AttentionMode

# Prompts decoded together; fewer where their cache would be larger than this many bytes.
ROWS_PER_CALL = 16
MOST_CACHE_BYTES = 4 * 2**30
SHORTEST_PROMPT, SHORTEST_ANSWER = 32, 16  # smallest buckets, in tokens
SLOTS = 128  # the capacity of a cache for prompts and answers is a multiple of this

OnTokens = Callable[[int, list[int]], None]


@dataclasses.dataclass
class Timings:
    """Seconds: waiting for records, reading prompts (first token included), decoding the rest."""

    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass
class Generation:
    """The result of `generate`, in the order of the prompts.

    Attributes:
      tokens: new tokens of each prompt, without the end of sequence.
      finished: why each answer ended: "stop" at an end of sequence, "length" at its limit.
      logits: `logits[b, i]` are those that token `i` of prompt `b` was chosen from (that of the end
        of sequence included), zeros after the end.
    """

    tokens: list[list[int]]
    finished: list[Literal["stop", "length"]]
    timings: Timings
    logits: Float[np.ndarray, "B new V"] | None = None


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """How all prompts of a call are decoded.

    Attributes:
      eos_ids: tokens that end an answer.
      mode: PREFIX reads a prompt bidirectionally, as a prefix language model was trained to.
      positions: rotary positions of the records (see `Positions`).
      int8_records: hold the records' keys and values on the device as int8, with a scale for each
        key channel and each value: a quarter of float32 to hold, and to read for every token.
      return_logits: also return the logits of every new token.
      stream_every: tokens between two calls of `on_tokens`.
      rows_per_call: prompts decoded together, at most.
      mesh: its devices share the rows and heads; None is the default device.
      progress: show a progress bar.
    """

    eos_ids: tuple[int, ...] = ()
    mode: AttentionMode = AttentionMode.CAUSAL
    positions: Positions = "running"
    int8_records: bool = False
    return_logits: bool = False
    stream_every: int = 1
    rows_per_call: int = ROWS_PER_CALL
    mesh: Mesh | None = None
    progress: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, the records before it, and how it is to be continued."""

    number: int
    prompt: Sequence[int]
    records: Sequence[KVRecord]
    sampling: Sampling

    @property
    def cached(self) -> int:
        """Tokens of the records."""
        return sum(len(record.tokens) for record in self.records)


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    records: Sequence[Sequence[KVRecord]] | None = None,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    options: DecodeOptions = DecodeOptions(),
    on_tokens: OnTokens | None = None,
) -> Generation:
    """Continues prompts, each after its own records.

    Prompts of similar length are decoded together. The results are in the order given and do not
    depend on which prompts share a batch.

    Args:
      prompts: token ids, at least one each.
      records: for each prompt the records before it, in the order of reading.
      sampling: one setting for all prompts, or one for each.
      on_tokens: called with (number of the prompt, its new tokens) as they are chosen.

    Raises:
      GritError: an empty prompt, an id outside the vocabulary, a prompt that with its records and
        its new tokens is longer than the model's context, a record of another model, or logits that
        are not finite.
    """
    config = dataclasses.replace(config, remat="none")  # no backward pass here
    requests = _requests(prompts, records, sampling, config)
    result = Generation([[] for _ in prompts], ["length"] * len(prompts), Timings())
    logits: list[tuple[list[int], np.ndarray]] = []
    with show_progress(len(requests), "generate", "answers", quiet=not options.progress) as bar:
        for batch in _batches(requests, config, options.rows_per_call):
            with jax.set_mesh(options.mesh) if options.mesh else contextlib.nullcontext():
                kept = _Batch(params, config, batch, options).run(result, on_tokens)
            if kept is not None:
                logits.append(([request.number for request in batch], kept))
            bar.update(len(batch))
    if options.return_logits:
        longest = max((kept.shape[1] for _, kept in logits), default=0)
        result.logits = np.zeros((len(prompts), longest, config.vocab_size), np.float32)
        for numbers, kept in logits:
            result.logits[numbers, : kept.shape[1]] = kept
    return result


def _requests(
    prompts: Sequence[Sequence[int]],
    records: Sequence[Sequence[KVRecord]] | None,
    sampling: Sampling | Sequence[Sampling],
    config: ModelConfig,
) -> list[Request]:
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    records = records if records is not None else [()] * len(prompts)
    if len(settings) != len(prompts) or len(records) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(settings)} samplings, {len(records)} lists of records"
        )
    if any(len(before) for before in records):
        check_records(config)
    requests = []
    for i, (prompt, before, setting) in enumerate(zip(prompts, records, settings, strict=True)):
        if not len(prompt):
            raise GritError(f"prompt {i} is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise GritError(
                f"prompt {i} has a token id outside the vocabulary (0 to {config.vocab_size - 1})"
            )
        requests.append(_fit(Request(i, prompt, before, setting), config.context_length))
    return requests


def _fit(request: Request, context: int) -> Request:
    """The request with the default of `max_new_tokens` lowered to what the context has left.

    Raises:
      GritError: prompt and records leave no room, or not enough for the `max_new_tokens` given.
    """
    new = request.sampling.max_new_tokens
    before, cached = request.cached + len(request.prompt), request.cached
    if before + (1 if isinstance(new, DefaultLength) else new) > context:
        parts = f"{before} tokens" + (f" ({cached} of them from records)" if cached else "")
        raise GritError(
            f"prompt {request.number} has {parts}, and {int(new)} new ones do not fit this model's"
            f" context of {context}; shorten it or lower max_new_tokens"
        )
    if before + new <= context:
        return request
    sampling = dataclasses.replace(request.sampling, max_new_tokens=context - before)
    return dataclasses.replace(request, sampling=sampling)


def _batches(
    requests: Sequence[Request], config: ModelConfig, rows_per_call: int
) -> Iterator[list[Request]]:
    """Requests that are decoded together: of similar length, and no more than fit the memory."""
    batch: list[Request] = []
    longest = 0
    for request in sorted(
        requests, key=lambda r: (bucket(r.cached, SHORTEST_RECORDS), len(r.prompt))
    ):
        length = request.cached + len(request.prompt) + request.sampling.max_new_tokens
        longest = max(longest, length)
        full = len(batch) == rows_per_call or not cache_fits(config, len(batch) + 1, longest)
        if batch and full:
            yield batch
            batch, longest = [], length
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
        self, params: Params, config: ModelConfig, requests: list[Request], options: DecodeOptions
    ):
        self.params, self.config = params, config
        self.requests, self.options = requests, options
        prefix = options.mode is AttentionMode.PREFIX
        self.prompt_mode = AttentionMode.BIDIRECTIONAL if prefix else AttentionMode.CAUSAL
        self.answers: list[list[int]] = [[] for _ in requests]
        self.ended = [False] * len(requests)

    def run(self, result: Generation, on_tokens: OnTokens | None) -> np.ndarray | None:
        """Fills `result` at the requests' numbers; returns the logits `[b, new, V]` if they are
        kept."""
        start = time.perf_counter()
        prompts, settings = self._prompts(), self._settings()
        new_tokens = bucket(
            max(request.sampling.max_new_tokens for request in self.requests), SHORTEST_ANSWER
        )
        slots = round_up(prompts.tokens.shape[1] + new_tokens, SLOTS)
        sizes = DecodeSizes(slots, new_tokens, self.options.return_logits)
        state, records, waited = self._prefill(prompts, settings, sizes)
        state.token.block_until_ready()
        result.timings.load += waited
        result.timings.prefill += (after := time.perf_counter()) - start - waited

        collected = 0
        while True:
            # Read before the state is donated to the next call, which frees its buffers.
            step, finished = int(state.step), bool(np.asarray(state.done).all())
            self._check_finite(state)
            if on_tokens is not None or finished:
                self._collect(state, collected, step, on_tokens)
                collected = step
            if finished:
                break
            until = step + self.options.stream_every if on_tokens is not None else new_tokens
            state = decode_step(
                self.params, state, records, np.int32(until), settings, config=self.config
            )
        result.timings.decode += time.perf_counter() - after
        for request, answer, ended in zip(self.requests, self.answers, self.ended, strict=True):
            result.tokens[request.number] = answer
            result.finished[request.number] = "stop" if ended else "length"
        if not self.options.return_logits:
            return None
        return np.asarray(state.logits)[: len(self.requests), :step]

    def _prompts(self) -> PromptRows:
        """Prompts in a bucket; the rows that fill the batch up have one token to read."""
        rows = _padded(len(self.requests))
        longest = max(len(request.prompt) for request in self.requests)
        tokens = np.zeros((rows, bucket(longest, SHORTEST_PROMPT)), np.int32)
        lengths = np.ones(rows, np.int32)
        for r, request in enumerate(self.requests):
            tokens[r, : len(request.prompt)], lengths[r] = request.prompt, len(request.prompt)
        return PromptRows(tokens, lengths)

    def _settings(self) -> DecodeSettings:
        """Settings by row; the rows that fill the batch up end with their first token."""
        rows = _padded(len(self.requests))
        limits, ignore_eos = np.ones(rows, np.int32), np.zeros(rows, bool)
        samplings = [request.sampling for request in self.requests]
        for r, sampling in enumerate(samplings):
            limits[r], ignore_eos[r] = sampling.max_new_tokens, sampling.ignore_eos
        eos = np.asarray(self.options.eos_ids or [-1], np.int32)
        fillers = [samplings[-1]] * (rows - len(samplings))
        stop = StopConditions(limits, ignore_eos, eos)
        return DecodeSettings(sampling_rows([*samplings, *fillers]), stop)

    def _prefill(
        self, prompts: PromptRows, settings: DecodeSettings, sizes: DecodeSizes
    ) -> tuple[DecodeState, KVCache | None, float]:
        """The state after the first token, the cache of the records, and the seconds of waiting
        for them."""
        if not any(len(request.records) for request in self.requests):
            state = prefill_step(
                self.params,
                prompts,
                settings,
                config=self.config,
                sizes=sizes,
                prompt_mode=self.prompt_mode,
            )
            return state, None, 0.0
        read, waited = self._read_over_records(prompts)
        state = prefill_end_step(
            self.params, read, prompts.lengths, settings, config=self.config, sizes=sizes
        )
        return state, read.records, waited

    def _read_over_records(self, prompts: PromptRows) -> tuple[PrefillState, float]:
        """Takes the prompts through all layers; also returns the seconds of waiting for records.

        Each layer is dispatched as soon as its records are there, so that the device computes it
        while the next one is loaded.
        """
        config, began = self.config, time.perf_counter()
        records = load_records(
            [request.records for request in self.requests],
            config,
            len(prompts.lengths),
            self.options.positions,
        )
        waited = time.perf_counter() - began
        state = prefill_start_step(
            self.params,
            prompts,
            records.positions,
            records.segments,
            config=config,
            dtype=jnp.dtype(jnp.int8 if self.options.int8_records else config.dtype),
        )
        for layer, kind in enumerate(config.layer_kinds):
            began = time.perf_counter()
            groups = tuple(
                LayerRecords(jax.device_put(group.arrays), group.codec)
                for group in records.layer(layer)
            )
            waited += time.perf_counter() - began
            indices = stack_indices(self.params, config.layer_kinds, layer)
            state = prefill_layer_step(
                self.params,
                state,
                np.int32(layer),
                {name: np.int32(index) for name, index in indices.items()},
                groups,
                config=config,
                kind=kind,
                prompt_mode=self.prompt_mode,
            )
        return state, waited

    def _check_finite(self, state: DecodeState) -> None:
        """Raises GritError where the logits of a request are not finite: any token chosen from them
        would be arbitrary."""
        finite = np.asarray(state.finite)[: len(self.requests)]
        if not finite.all():
            request = self.requests[int(np.argmin(finite))]
            raise GritError(
                f"prompt {request.number}: the model's logits are not finite:"
                f" {describe_cause(self.params, self.config.dtype)}"
            )

    def _collect(
        self, state: DecodeState, start: int, stop: int, on_tokens: OnTokens | None
    ) -> None:
        """Adds the tokens number `start` to `stop` to the answers."""
        # Sliced on the host: on the device every new size would be compiled.
        chosen = np.asarray(state.tokens)[: len(self.requests), start:stop]
        for r, request in enumerate(self.requests):
            if self.ended[r]:
                continue
            new = chosen[r].tolist()[: request.sampling.max_new_tokens - len(self.answers[r])]
            if not request.sampling.ignore_eos:
                end = next(
                    (n for n, token in enumerate(new) if token in self.options.eos_ids), None
                )
                self.ended[r] = end is not None
                new = new[:end]
            self.answers[r] += new
            if on_tokens is not None and new:
                on_tokens(request.number, new)
