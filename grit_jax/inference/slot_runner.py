"""Requests in slots: which slot a request gets, what is dispatched next, and what came back.

The host runs ahead of the device: calls are dispatched without waiting, and the tokens of a call
are read while the next one runs. Not thread-safe; the engine's thread calls it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import time
from typing import Any

import jax
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import adjustment_rows, allow_step, words
from grit_jax.inference.engine_state import Chosen, EngineShape, LastChunk, PromptChunk
from grit_jax.inference.engine_steps import (
    STEPS,
    empty_state_step,
    generate_step,
    insert_records_step,
    insert_whole_step,
    open_slot_step,
    release_step,
)
from grit_jax.inference.layer_weights import separate_layers
from grit_jax.inference.logprobs import joined
from grit_jax.inference.prefill import Prefill
from grit_jax.inference.record_loader import RecordLoader, in_one_piece, lay_out_whole
from grit_jax.inference.requests import GenerateResult, Pending, Seconds, SlotRoom
from grit_jax.inference.row_packing import bucket, round_up
from grit_jax.inference.sampling import Sampling, settings_of
from grit_jax.inference.slot_jobs import Call, Job, RunnerOptions
from grit_jax.models.config import ModelConfig
from grit_jax.models.finite import describe_cause
from grit_jax.models.rotary import depends_on_length
from grit_jax.models.slot_cache import Span
from grit_jax.models.transformer import Params
from grit_jax.sharding import num_row_shards
from grit_jax.types import AttentionMode

SHORTEST_PROMPT = 32  # smallest bucket of a chunk, in tokens


def prompt_bucket(tokens: int) -> int:
    """The length that a chunk of `tokens` tokens is padded to.

    Up to 256 there are two more than `bucket` has: reading prompts is more than half of the work of
    an engine on a CPU.
    """
    if tokens > 256:
        return bucket(tokens, SHORTEST_PROMPT)
    return round_up(tokens, 32 if tokens <= 128 else 64)


class SlotRunner:
    """Runs requests in the slots of one state on the device."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        shape: EngineShape,
        options: RunnerOptions = RunnerOptions(),
    ):
        self.params, self.options = params, options
        self._separate = separate_layers(params, options.mesh)
        self.config = dataclasses.replace(config, remat="none")  # no backward pass here
        self._prefill = Prefill(params, self._separate, self.config)
        self.shares = num_row_shards(options.mesh) if options.mesh is not None else 1
        if shape.slots % self.shares:
            raise ValueError(f"{shape.slots} slots do not divide among {self.shares} row shards")
        with self._mesh():
            self.state = empty_state_step(config=self.config, shape=shape)
        records = self.state.records
        self.room = SlotRoom(self.state.cache.capacity, records.capacity if records else None)
        self.shape = shape
        self.jobs: list[Job | None] = [None] * shape.slots
        self.seconds = Seconds()
        self.steps_per_second = 0.0
        self._reading: collections.deque[Job] = collections.deque()
        self._loading: list[Job] = []
        self._calls: collections.deque[Call] = collections.deque()
        self._marked, self._waited = time.perf_counter(), 0.0
        self._eos = options.eos_table(shape.adapters)
        prefix = options.mode is AttentionMode.PREFIX
        self._mode = AttentionMode.BIDIRECTIONAL if prefix else AttentionMode.CAUSAL
        # A bidirectional prompt, and one rotated by its whole length, is read in one piece.
        self._whole_prompts = prefix or depends_on_length(config)

    @property
    def free(self) -> int:
        """Slots without a request."""
        return self.jobs.count(None)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._calls or self._reading or self._loading or self.free < len(self.jobs))

    @property
    def calls(self) -> int:
        """Calls dispatched whose results were not read yet."""
        return len(self._calls)

    def admit(self, pending: Pending[GenerateResult]) -> None:
        """Gives a request a free slot."""
        per_share = len(self.jobs) // self.shares
        used = [
            sum(job is not None for job in self.jobs[p * per_share : (p + 1) * per_share])
            for p in range(self.shares)
        ]
        share = used.index(min(used))
        slot = share * per_share + self.jobs[share * per_share :].index(None)
        job = Job(pending, slot)
        if self.idle:
            self._mark()
        self.jobs[slot] = job
        pending.times.admitted = time.monotonic()
        request = job.request
        job.start = request.cached if self.state.records is None else 0
        if request.records and not in_one_piece(request.records):
            job.loader = RecordLoader(request, self.config, self.room.records)
            self._loading.append(job)
            return
        with self._mesh():
            if request.records:
                whole = lay_out_whole(request, self.config, self.room.records)
                span = self._span({share: job}, {share: (0, request.cached)})
                positions = np.broadcast_to(whole.positions, (self.shares, whole.positions.size))
                self.state = insert_whole_step(
                    self.state, positions, span, whole.groups, whole.order, config=self.config
                )
            elif self.state.records is not None:
                self.state = open_slot_step(self.state, self._span({share: job}, {share: (0, 1)}))
        self._reading.append(job)

    def drop_cancelled(self) -> None:
        """Frees the slots of cancelled requests."""
        gone = [job for job in self.jobs if job is not None and job.pending.cancelled]
        if not gone:
            return
        keep = np.ones(len(self.jobs), bool)
        for job in gone:
            keep[job.slot] = False
            self._free(job)
            job.pending.drop()
        with self._mesh():
            self.state = release_step(self.state, keep)

    def prefill(self, tokens: int, *, wait: float) -> int:
        """Dispatches chunks of prompts of about `tokens` tokens, and the layers of records that
        have come; returns how many tokens.

        Args:
          wait: seconds, at most, to wait for records that are being loaded, because there is
            nothing else to do.
        """
        dispatched = 0
        for job in list(self._loading):
            dispatched += self._insert(job, 0 if self._reading else wait)
        while self._reading and dispatched < tokens:
            dispatched += self._read_chunk()
        return dispatched

    def decode(self, steps: int, *, stop_early: bool) -> bool:
        """Dispatches up to `steps` more tokens of all answers; False if none goes on."""
        going = self._going()
        if any(job.request.constraint is not None for job in going.values()):
            steps, going = 1, self._constrain()
        left = max(
            (job.request.sampling.max_new_tokens - job.planned for job in going.values()), default=0
        )
        if left <= 0:
            return False
        steps = min(steps, left, STEPS)
        with self._mesh():
            self.state, chosen = generate_step(
                self.params if self._separate is None else self._separate,
                self.state,
                np.int32(steps),
                self._eos,
                np.bool_(stop_early),
                config=self.config,
                return_logits=self.options.return_logits,
            )
        for job in going.values():
            job.planned += steps
        self._calls.append(Call(chosen, going, steps, is_prefill=False))
        return True

    def _going(self) -> dict[int, Job]:
        """The answers under way by slot. The device runs all active slots: also those that may end
        within the calls before."""
        return {job.slot: job for job in self.jobs if job is not None and job.planned > 0}

    def _constrain(self) -> dict[int, Job]:
        """Sets the tokens that constrained answers may have next, for which their last ones must be
        known; returns the answers under way."""
        while self._calls:
            self.collect()
        going = self._going()
        allowed = np.zeros((len(self.jobs), words(self.config.vocab_size)), np.uint32)
        changed = np.zeros(len(self.jobs), bool)
        for slot, job in going.items():
            if job.request.constraint is not None:
                allowed[slot], changed[slot] = job.request.constraint.allowed(), True
        with self._mesh():
            adjustments = allow_step(self.state.adjustments, allowed, changed)
            self.state = dataclasses.replace(self.state, adjustments=adjustments)
        return going

    def collect(self) -> None:
        """Waits for the oldest call and hands out its tokens."""
        call = self._calls.popleft()
        tokens, counts = np.asarray(call.chosen.tokens), np.asarray(call.chosen.counts)
        active, finite = np.asarray(call.chosen.active), np.asarray(call.chosen.finite)
        kept = np.asarray(call.chosen.logits) if self.options.return_logits else None
        logprobs = call.chosen.logprobs
        if any(job.request.sampling.adjustments.logprobs for job in call.jobs.values()):
            logprobs = jax.tree.map(np.asarray, logprobs)
        seconds = self._mark()
        if call.is_prefill:
            self.seconds.prefill += seconds
        else:
            self.seconds.decode += seconds
            if (ran := int(counts.max(initial=0))) and seconds > 0:
                self.steps_per_second = ran / seconds
        for row, job in call.jobs.items():
            count = int(counts[row])
            job.planned -= call.steps - count
            if not job.live:
                continue
            if not finite[row]:
                cause = describe_cause(self.params, self.config.dtype)
                name = job.request.name
                self._fail(job, GritError(f"{name}: the model's logits are not finite: {cause}"))
                continue
            if kept is not None:
                job.logits.append(kept[row, :count])
            if job.request.sampling.adjustments.logprobs and logprobs is not None:
                job.logprobs.append(logprobs[row, :count])
            self._add(job, tokens[row, :count].tolist(), goes_on=bool(active[row]))

    def fail_all(self, error: BaseException) -> None:
        """Ends all requests with an error."""
        for job in self.jobs:
            if job is not None:
                self._fail(job, error)
        self._calls.clear()

    @property
    def chunk(self) -> int:
        """Tokens of the longest chunk of a prompt."""
        return (
            self.room.capacity
            if self._whole_prompts
            else min(self.options.chunk, self.room.capacity)
        )

    def warm_up(self) -> None:
        """Compiles what `drop_cancelled` needs."""
        with self._mesh():
            self.state = release_step(self.state, np.ones(len(self.jobs), bool))

    def leaks(self) -> list[str]:
        """What an idle runner still holds, and should not."""
        found = []
        if self.free != len(self.jobs):
            found.append(f"{len(self.jobs) - self.free} slots")
        if self._reading or self._loading:
            found.append(f"{len(self._reading) + len(self._loading)} prompts")
        if active := int(np.asarray(self.state.active).sum()):
            found.append(f"{active} active slots on the device")
        return found

    def _mesh(self) -> contextlib.AbstractContextManager[Any]:
        mesh = self.options.mesh
        return jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext()

    def _mark(self) -> float:
        """Seconds since the last call, waiting for records left out."""
        now = time.perf_counter()
        seconds, self._marked = now - self._marked - self._waited, now
        self._waited = 0.0
        return seconds

    def _place(self, job: Job) -> tuple[int, int]:
        """The share of a job's slot, and the slot's number in it."""
        return divmod(job.slot, len(self.jobs) // self.shares)

    def _span(self, jobs: dict[int, Job], parts: dict[int, tuple[int, int]]) -> Span:
        """Where one job of each share writes; `parts` are start and count by share."""
        local, start, count = np.zeros((3, self.shares), np.int32)
        for share, job in jobs.items():
            local[share] = self._place(job)[1]
            start[share], count[share] = parts[share]
        return Span(local, start, count)

    def _chunk_size(self, job: Job) -> tuple[int, int]:
        """Tokens of a job's next chunk, and their bucket. Both depend on the request alone."""
        count = job.rest if self._whole_prompts else min(job.rest, self.options.chunk)
        return count, min(prompt_bucket(count), self.room.capacity)

    def _next_chunk(self, jobs: dict[int, Job]) -> tuple[PromptChunk, LastChunk]:
        """The next chunks of jobs with one bucket, which are advanced."""
        size = max(self._chunk_size(job)[1] for job in jobs.values())
        tokens = np.zeros((self.shares, size), np.int32)
        here, adapters = np.zeros(self.shares, bool), np.zeros(self.shares, np.int32)
        parts, samplings = {}, [Sampling()] * self.shares
        for share, job in jobs.items():
            count, _ = self._chunk_size(job)
            tokens[share, :count] = job.request.prompt[job.read : job.read + count]
            parts[share] = (job.start, count)
            samplings[share] = job.request.sampling
            here[share], adapters[share] = count == job.rest, job.request.adapter
            job.read, job.start = job.read + count, job.start + count
        settings, adjustments = settings_of(samplings), None
        if self.shape.adjustable:
            asked = [sampling.adjustments for sampling in samplings]
            masks: list[np.ndarray | None] = [None] * self.shares
            for share, job in jobs.items():
                if here[share] and job.request.constraint is not None:
                    masks[share] = job.request.constraint.allowed()
            adjustments = adjustment_rows(asked, self.config.vocab_size, masks)
        chosen = adapters if self.shape.adapters else None
        chunk = PromptChunk(tokens, self._span(jobs, parts), self._mode, chosen)
        return chunk, LastChunk(here, settings, self._eos, adjustments)

    def _read_chunk(self) -> int:
        """Dispatches the next chunk of the first prompt, and of the first of each other share if
        they are of the same bucket."""
        jobs: dict[int, Job] = {}
        size = self._chunk_size(self._reading[0])[1]
        for job in self._reading:
            share = self._place(job)[0]
            if share not in jobs and self._chunk_size(job)[1] == size:
                jobs[share] = job
        counts = sum(self._chunk_size(job)[0] for job in jobs.values())
        chunk, last = self._next_chunk(jobs)
        with self._mesh():
            self.state, chosen = self._prefill.whole(self.state, chunk, last)
        self._after_chunk(chosen, jobs, last)
        return counts

    def _after_chunk(self, chosen: Chosen, jobs: dict[int, Job], last: LastChunk) -> None:
        ended = {share: job for share, job in jobs.items() if last.here[share]}
        for job in ended.values():
            job.planned = 1
            if job in self._reading:
                self._reading.remove(job)
        if ended:
            self._calls.append(Call(chosen, ended, 1, is_prefill=True))

    def _insert(self, job: Job, wait: float) -> int:
        """Dispatches the layers of a job's records that have come, and the first chunk of its
        prompt over each; returns the tokens of that chunk once it is through."""
        loader = job.loader
        assert loader is not None
        share, _ = self._place(job)
        while True:
            try:
                began = time.perf_counter()
                item = loader.get(wait)
                waited = time.perf_counter() - began
            except queue.Empty:
                return 0
            except GritError as error:
                self._fail(job, error)
                return 0
            self._waited += waited
            self.seconds.load += waited
            job.pending.times.load += waited
            layer, records = item
            rows, kinds = loader.rows, self.config.layer_kinds
            assert rows is not None
            with self._mesh():
                if layer == 0:
                    loader.chunk, loader.last = self._next_chunk({share: job})
                    loader.span = self._span({share: job}, {share: (0, job.request.cached)})
                    loader.x = self._prefill.start(loader.chunk)
                self.state = insert_records_step(
                    self.state,
                    np.int32(layer),
                    np.broadcast_to(loader.positions, (self.shares, loader.positions.shape[1])),
                    loader.span,
                    records,
                    loader.order,
                    config=self.config,
                    local_rope=kinds[layer].local_rope,
                )
                self.state, loader.x = self._prefill.layer(
                    self.state, loader.x, loader.chunk, layer
                )
                if layer + 1 < len(kinds):
                    continue
                self.state, chosen = self._prefill.end(
                    self.state, loader.x, loader.chunk, loader.last
                )
            self._loading.remove(job)
            job.loader = None
            if job.rest:
                self._reading.append(job)
            self._after_chunk(chosen, {share: job}, loader.last)
            return int(loader.chunk.span.count.sum())

    def _add(self, job: Job, new: list[int], *, goes_on: bool) -> None:
        """Adds the tokens of a call to a job's answer."""
        sampling = job.request.sampling
        stopped = (
            not goes_on
            and not sampling.ignore_eos
            and bool(new)
            and new[-1] in self.options.ends_of(job.request.adapter)
        )
        if new and job.pending.times.first_token is None:
            job.pending.times.first_token = time.monotonic()
        if job.request.constraint is not None:
            try:
                for token in new:
                    job.request.constraint.accept(token)
            except GritError as error:
                self._abandon(job, error)
                return
        new = new[:-1] if stopped else new
        job.tokens += new
        if new and job.request.on_tokens is not None:
            try:
                if job.request.on_logprobs is not None:
                    job.request.on_logprobs(job.logprobs[-1][: len(new)])
                job.request.on_tokens(new)
            except Exception as error:  # the caller's own: its request ends, the others do not
                self._abandon(job, error)
                return
        if not goes_on:
            self._free(job)
            logits = np.concatenate(job.logits) if job.logits else None
            logprobs = joined(job.logprobs)[: len(job.tokens)] if job.logprobs else None
            job.pending.finish(
                GenerateResult(
                    job.tokens,
                    "stop" if stopped else "length",
                    job.pending.times,
                    logits,
                    logprobs,
                )
            )

    def _abandon(self, job: Job, error: BaseException) -> None:
        """Ends an answer that the device would go on with."""
        self._fail(job, error)
        keep = np.arange(len(self.jobs)) != job.slot
        with self._mesh():
            self.state = release_step(self.state, keep)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._free(job)
        job.pending.fail(error)

    def _free(self, job: Job) -> None:
        job.live = False
        self.jobs[job.slot] = None
        if job.loader is not None:
            job.loader.close()
            self._loading.remove(job)
            job.loader = None
        if job in self._reading:
            self._reading.remove(job)
