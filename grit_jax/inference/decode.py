"""Generation for a list of prompts: they run through the slots of an engine, each after its own
records."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.inference.adjustments import PLAIN, check_adjustments
from grit_jax.inference.engine_state import EngineShape
from grit_jax.inference.engine_steps import STEPS
from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.records import KVRecord, Positions, check_record
from grit_jax.inference.requests import Finish, GenerateRequest, GenerateResult, Pending, Seconds
from grit_jax.inference.row_packing import bucket
from grit_jax.inference.sampling import GREEDY, Sampling
from grit_jax.inference.slot_runner import RunnerOptions, SlotRunner
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.models.slot_cache import KEY_BLOCK
from grit_jax.models.transformer import Params
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.sharding import num_row_shards
from grit_jax.text.length import DefaultLength
from grit_jax.types import AttentionMode

# Prompts decoded together; fewer where their cache would be larger than this many bytes.
ROWS_PER_CALL = 16
MOST_CACHE_BYTES = 4 * 2**30
PREFILL_TOKENS = 1024  # tokens of prompts that are read between two calls that decode

OnTokens = Callable[[int, list[int]], None]
Timings = Seconds


@dataclasses.dataclass
class Generation:
    """The result of `generate`, in the order of the prompts.

    Attributes:
      tokens: new tokens of each prompt, without the end of sequence.
      finished: why each answer ended: "stop" at an end of sequence, "length" at its limit.
      logprobs: of each answer's tokens; None for those that do not ask for them.
      logits: `logits[b, i]` are those that token `i` of prompt `b` was chosen from (that of the end
        of sequence included), zeros after the end.
    """

    tokens: list[list[int]]
    finished: list[Finish]
    timings: Timings
    logits: Float[np.ndarray, "B new V"] | None = None
    logprobs: list[TokenLogprobs | None] = dataclasses.field(default_factory=list)


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

    As soon as an answer ends, the next prompt gets its slot. The results are in the order given and
    do not depend on which prompts are decoded together.

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
    requests = _requests(prompts, records, sampling, config, options, on_tokens)
    result = Generation([[] for _ in prompts], ["length"] * len(prompts), Timings())
    if not requests:
        return result
    # Answers of similar length run side by side: a step reads as far as its longest slot.
    order = sorted(range(len(requests)), key=lambda i: requests[i].length)
    waiting = [Pending(requests[i]) for i in order]
    runner = SlotRunner(
        params,
        config,
        engine_shape(requests, config, options),
        RunnerOptions(
            options.eos_ids,
            options.mode,
            return_logits=options.return_logits,
            mesh=options.mesh,
        ),
    )
    steps = options.stream_every if on_tokens is not None else STEPS
    with show_progress(len(requests), "generate", "answers", quiet=not options.progress) as bar:
        for pending in run_all(runner, waiting, steps):
            pending.result()  # raises its error
            bar.update(1)
    result.timings = runner.seconds
    kept: dict[int, np.ndarray] = {}
    result.logprobs = [None] * len(prompts)
    for i, pending in zip(order, waiting, strict=True):
        answer = pending.result()
        result.tokens[i], result.finished[i] = answer.tokens, answer.finished
        result.logprobs[i] = answer.logprobs
        if answer.logits is not None:
            kept[i] = answer.logits
    if options.return_logits:
        longest = max((len(logits) for logits in kept.values()), default=0)
        result.logits = np.zeros((len(prompts), longest, config.vocab_size), np.float32)
        for i, logits in kept.items():
            result.logits[i, : len(logits)] = logits
    return result


def run_all(
    runner: SlotRunner, waiting: Sequence[Pending[GenerateResult]], steps: int
) -> Iterator[Pending[GenerateResult]]:
    """Runs requests through a runner in this thread; yields each one that has ended."""
    queue, under_way = list(reversed(waiting)), list[Pending[GenerateResult]]()
    try:
        while queue or under_way:
            while queue and runner.free:
                under_way.append(queue[-1])
                runner.admit(queue.pop())
            alone = not runner.calls
            read = runner.prefill(PREFILL_TOKENS, wait=60.0 if alone else 0.0)
            more = runner.decode(steps, stop_early=bool(queue))
            # One call runs while the tokens of the one before are read.
            while runner.calls > (1 if read or more else 0):
                runner.collect()
            for pending in [pending for pending in under_way if pending.done()]:
                under_way.remove(pending)
                yield pending
    finally:
        runner.fail_all(GritError("the call was ended"))


def engine_shape(
    requests: Sequence[GenerateRequest], config: ModelConfig, options: DecodeOptions
) -> EngineShape:
    """Slots and their capacity for a list of requests: sizes from a short list, so that many calls
    run through few compiled programs."""
    shards = num_row_shards(options.mesh) if options.mesh is not None else 1
    cached = max(request.cached for request in requests) if options.int8_records else 0
    longest = max(request.length - (request.cached if cached else 0) for request in requests)
    capacity = bucket(longest, KEY_BLOCK)
    beside = bucket(cached, KEY_BLOCK) if cached else 0
    rows = min(options.rows_per_call, len(requests))
    slots = round_up(1 << (rows - 1).bit_length(), shards)
    while slots > shards and not cache_fits(config, slots, capacity):
        slots = max(slots // 2, shards)
    adjustable = any(request.sampling.adjustments != PLAIN for request in requests)
    return EngineShape(slots, capacity, beside, adjustable)


def cache_fits(config: ModelConfig, rows: int, length: int) -> bool:
    """Whether so many rows of that length may be decoded together."""
    return rows * length * bytes_per_token(config) <= MOST_CACHE_BYTES


@functools.cache
def bytes_per_token(config: ModelConfig) -> int:
    """Bytes of a token's keys and values in the cache."""
    c = config
    heads = c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    return 2 * heads * jnp.dtype(c.dtype).itemsize


def _requests(
    prompts: Sequence[Sequence[int]],
    records: Sequence[Sequence[KVRecord]] | None,
    sampling: Sampling | Sequence[Sampling],
    config: ModelConfig,
    options: DecodeOptions,
    on_tokens: OnTokens | None,
) -> list[GenerateRequest]:
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    records = records if records is not None else [()] * len(prompts)
    if len(settings) != len(prompts) or len(records) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(settings)} samplings, {len(records)} lists of records"
        )
    requests = []
    for i, (prompt, before, setting) in enumerate(zip(prompts, records, settings, strict=True)):
        request = GenerateRequest(
            prompt,
            before,
            setting,
            options.positions,
            functools.partial(on_tokens, i) if on_tokens is not None else None,
            name=f"prompt {i}",
        )
        requests.append(checked(request, config))
    return requests


def checked(request: GenerateRequest, config: ModelConfig) -> GenerateRequest:
    """The request with the default of `max_new_tokens` lowered to what the context has left.

    Raises:
      GritError: an empty prompt, an id outside the vocabulary, a record of another model, or prompt
        and records that leave no room, or not enough for the `max_new_tokens` given.
    """
    prompt, name, cached = request.prompt, request.name, request.cached
    if not len(prompt):
        raise GritError(f"{name} is empty: there is nothing to continue")
    if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        raise GritError(
            f"{name} has a token id outside the vocabulary (0 to {config.vocab_size - 1})"
        )
    check_adjustments(request.sampling.adjustments, config.vocab_size, name)
    if request.records:
        check_records(config)
    for number, record in enumerate(request.records):
        check_record(record, config, f"{name}, record {number}")
    new, context = request.sampling.max_new_tokens, config.context_length
    before = cached + len(prompt)
    if before + (1 if isinstance(new, DefaultLength) else new) > context:
        parts = f"{before} tokens" + (f" ({cached} of them from records)" if cached else "")
        raise GritError(
            f"{name} has {parts}, and {int(new)} new ones do not fit this model's context of"
            f" {context}; shorten it or lower max_new_tokens"
        )
    if before + new <= context:
        return request
    sampling = dataclasses.replace(request.sampling, max_new_tokens=context - before)
    return dataclasses.replace(request, sampling=sampling)
