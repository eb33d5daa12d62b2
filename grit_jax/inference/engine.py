"""The engine: requests of all kinds, from many threads, on one model.

One thread owns the device's work. In each turn it gives free slots to waiting requests, dispatches
a batch of embeddings or scores, a few chunks of prompts and a few steps of all answers, and then
hands out what the calls before have returned, while the device computes.

>>> from grit_jax import GritLM
>>> from grit_jax.inference.requests import GenerateRequest
>>> model = GritLM.from_pretrained("model")
>>> with model.engine(slots=4, context=256) as engine:
...     prompts = model.prompt_ids(["What does `list.sort` do?", "And `str.split`?"])
...     pending = [engine.submit(GenerateRequest(prompt)) for prompt in prompts]
...     answers = [request.result().tokens for request in pending]
>>> len(answers)
2
"""

from __future__ import annotations

import atexit
import dataclasses
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.inference.adjustments import PLAIN
from grit_jax.inference.decode import PREFILL_TOKENS, checked
from grit_jax.inference.encoder import Encoder
from grit_jax.inference.engine_state import EngineShape
from grit_jax.inference.engine_steps import STEPS
from grit_jax.inference.fair_queue import FairQueue
from grit_jax.inference.pass_runner import PassRunner
from grit_jax.inference.record_loader import Layered
from grit_jax.inference.records import SHORTEST_RECORDS, Codec, KVRecord, PackedRecord
from grit_jax.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    GenerateResult,
    LabelRequest,
    Pending,
    ScoreRequest,
)
from grit_jax.inference.row_packing import bucket
from grit_jax.inference.sampling import Sampling
from grit_jax.inference.slot_runner import (
    SHORTEST_PROMPT,
    RunnerOptions,
    SlotRunner,
    prompt_bucket,
)
from grit_jax.models.config import ModelConfig
from grit_jax.models.kernels import platform
from grit_jax.models.transformer import Params
from grit_jax.runtime.arguments import whole_number
from grit_jax.runtime.compilations import count_compilations
from grit_jax.sharding import num_row_shards
from grit_jax.types import KV, DocumentKV

LOG = logging.getLogger(__name__)
# A call takes no longer than this many seconds where somebody reads the answer as it grows.
STREAM_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class EngineLimits:
    """What bounds the work of an engine.

    Attributes:
      waiting: requests of a kind that may wait for a slot or a batch; more are refused.
      prefill_tokens: tokens of prompts that are read between two calls that decode.
      pass_tokens: tokens of a batch of embeddings or scores; None chooses by device.
      longest_text: tokens of a text that is embedded or scored; None: the model's context.
      watchdog: seconds without an advance after which the engine is given up (a compilation is one
        advance).
    """

    waiting: int = 1000
    prefill_tokens: int = PREFILL_TOKENS
    pass_tokens: int | None = None
    longest_text: int | None = None
    watchdog: float = 600.0


@dataclasses.dataclass
class EngineStats:
    """Counters of an engine.

    Attributes:
      healthy: False once the watchdog or an error has ended it.
      slots, slots_in_use, waiting, waiting_passes: now; of requests that generate, and of
        embeddings and scores.
      submitted, finished, failed, cancelled: requests so far.
      prompt_tokens, cached_tokens, generated_tokens: of finished answers; cached ones came from
        records.
      compilations: programs compiled since the warm-up.
      leaks: times that the idle engine held what it should not.
    """

    healthy: bool
    slots: int
    slots_in_use: int
    waiting: int
    waiting_passes: int
    submitted: int
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    compilations: int
    leaks: int


def checked_shape(
    slots: int,
    context: int,
    int8_records: int,
    mesh: Mesh | None,
    adjustable: bool = False,
    adapters: int = 0,
) -> EngineShape:
    """Slots for each row shard of a mesh, at least `slots` in all.

    Raises:
      GritError: a number that is too small or no whole number.
    """
    whole_number("slots", slots, 1)
    whole_number("context", context, 1)
    whole_number("int8_records", int8_records)
    if int8_records < 0:
        raise GritError(f"int8_records must be 0 (none) or above, got {int8_records}")
    shards = num_row_shards(mesh) if mesh is not None else 1
    return EngineShape(round_up(slots, shards), context, int8_records, adjustable, adapters)


class Engine:
    """Runs requests on a model until it is closed. All methods may be called from any thread.

    Args:
      encoder: embeds texts; it has the tokenizer's padding and the mesh.
      shape: slots and their capacity.
      options: ends of sequence, attention mode and mesh.
      adapters: the encoder of each adapter that the weights have (`models.adapter_stack`).
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        encoder: Encoder,
        shape: EngineShape,
        options: RunnerOptions = RunnerOptions(),
        limits: EngineLimits = EngineLimits(),
        adapters: Sequence[Encoder] = (),
    ):
        self.config, self.limits = config, limits
        self._make_runner = lambda: SlotRunner(params, config, shape, options)
        self._runner = self._make_runner()
        self._passes = PassRunner(
            encoder,
            options.mode,
            adapters=adapters,
            limit=limits.waiting,
            tokens=limits.pass_tokens,
            longest=limits.longest_text,
        )
        self._queue: FairQueue[Pending[GenerateResult]] = FairQueue(limits.waiting)
        self._lock = threading.Condition()
        self._open: set[Pending[Any]] = set()
        self._closing, self._healthy, self._busy = False, True, False
        self._beat = time.monotonic()
        self._counts = dict.fromkeys(
            ("submitted", "finished", "failed", "cancelled", "prompt", "cached", "generated"), 0
        )
        self._leaks = 0
        self._compiled = count_compilations()
        self._threads = [
            threading.Thread(target=self._run, name="engine", daemon=True),
            threading.Thread(target=self._watch, name="engine-watchdog", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        # A thread inside a program of XLA when the interpreter ends would abort the process.
        atexit.register(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @overload
    def submit(self, request: GenerateRequest) -> Pending[GenerateResult]: ...

    @overload
    def submit(
        self, request: EmbedRequest | ScoreRequest | LabelRequest
    ) -> Pending[np.ndarray]: ...

    def submit(self, request: Any) -> Pending[Any]:
        """Queues a request.

        Returns:
          What its result will be: a `GenerateResult`; unit vectors `[N, D]` of an `EmbedRequest`;
          log-probabilities `[len(ids) - start]` of a `ScoreRequest`, or `TokenLogprobs` with `top`;
          log-probabilities `[N, labels]` of a `LabelRequest`.

        Raises:
          QueueFull: too many requests wait.
          GritError: a request that this model or this engine cannot take, or an engine that has
            ended.
        """
        if not 0 <= request.adapter <= (adapters := self._runner.shape.adapters):
            raise GritError(
                f"{request.name}: there is no adapter {request.adapter}; the model has {adapters}"
            )
        if isinstance(request, GenerateRequest):
            request = self._runner.room.lowered(checked(request, self.config))
            if too_long := self._runner.room.too_long(request):
                raise GritError(f"{request.name} needs {too_long}; shorten it or max_new_tokens")
            adjusts = request.sampling.adjustments != PLAIN or request.constraint is not None
            if adjusts and not self._runner.shape.adjustable:
                raise GritError(
                    f"{request.name} has adjustments, and this engine was opened without"
                    " adjustable=True"
                )
        else:
            self._passes.check(request)
        pending: Pending[Any] = Pending(request, self._notify)
        with self._lock:
            if self._closing or not self._healthy:
                raise GritError(
                    "the engine is closed" if self._healthy else "the engine has failed"
                )
            queue: FairQueue[Any]
            queue = self._queue if isinstance(request, GenerateRequest) else self._passes.waiting
            queue.put(pending, request.user)
            self._open.add(pending)
            self._counts["submitted"] += 1
            self._lock.notify_all()
        return pending

    def stats(self) -> EngineStats:
        """Counters, as they are now."""
        with self._lock:
            counts = self._counts
            return EngineStats(
                healthy=self._healthy,
                slots=len(self._runner.jobs),
                slots_in_use=len(self._runner.jobs) - self._runner.free,
                waiting=len(self._queue),
                waiting_passes=len(self._passes.waiting),
                submitted=counts["submitted"],
                finished=counts["finished"],
                failed=counts["failed"],
                cancelled=counts["cancelled"],
                prompt_tokens=counts["prompt"],
                cached_tokens=counts["cached"],
                generated_tokens=counts["generated"],
                compilations=count_compilations() - self._compiled,
                leaks=self._leaks,
            )

    def warm_up(
        self,
        *,
        codecs: Sequence[Codec | None] = (None,),
        longest_records: int | None = None,
        longest_text: int | None = None,
        score: bool = True,
        labels: bool = False,
    ) -> int:
        """Compiles all programs that requests within these bounds need; returns how many.

        To be called before the first request. From then on `EngineStats.compilations` counts.

        Args:
          codecs: of the records that will come, None for plain ones; an empty list: no records.
          longest_records: tokens of a request's records; None: as many as fit.
          longest_text: tokens of a text that is embedded or scored; None: as many as may come.
          score: also those of `ScoreRequest`.
          labels: also those of `LabelRequest` with two labels.
        """
        before = count_compilations()
        runner = self._runner
        self._passes.warm_up(longest_text, score=score, labels=labels)
        room = runner.room.capacity - 2 * SHORTEST_PROMPT
        # The longest prompt of each bucket that leaves room for a record of a token and the answer.
        most = max(1, min(runner.chunk, runner.room.capacity - 3))
        capacity = runner.room.capacity
        prompts = {min(prompt_bucket(n), capacity): n for n in range(1, most + 1)}.values()
        warm = Sampling(max_new_tokens=2, ignore_eos=True)
        requests = [GenerateRequest([0] * n, (), warm) for n in sorted(prompts)]
        longest = min(longest_records or runner.room.records, runner.room.records)
        sizes = sorted({min(bucket(n, SHORTEST_RECORDS), longest) for n in range(1, longest + 1)})
        query = [_zeros(self.config, 1, None)]
        context = min(self.config.context_length, runner.room.capacity)
        for codec in codecs:
            for size in sizes:
                size = min(size, context - 2 * SHORTEST_PROMPT)
                record = _zeros(self.config, size, codec)
                for beside in ([], query) if codec is not None else ([],):
                    for one in (record, Layered(record)):
                        requests.append(GenerateRequest([0], (one, *beside), warm))
            layered = Layered(_zeros(self.config, 1, codec))
            requests += [GenerateRequest([0] * n, (layered,), warm) for n in sorted(prompts)]
        for pending in [self.submit(request) for request in requests]:
            pending.result()
        stopped = self.submit(GenerateRequest([0], (), Sampling(max_new_tokens=room)))
        stopped.cancel()
        self.wait_until_idle()
        runner.warm_up()
        self._compiled = count_compilations()
        for name in self._counts:
            self._counts[name] = 0
        return self._compiled - before

    def wait_until_idle(self, timeout: float | None = None) -> bool:
        """Waits until no request is open; False if it takes longer than `timeout` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._open and not self._busy, timeout)

    def close(self) -> None:
        """Ends the engine; requests that are not finished get an error."""
        atexit.unregister(self.close)
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(None if self._healthy else 1.0)  # a stuck one is left behind
        self._fail(GritError("the engine was closed"))
        self._settle()
        with self._lock:
            self._busy = False
            self._lock.notify_all()

    # The engine's thread.

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._closing or self._has_work()):
                    if self._busy:
                        self._check_idle()
                    self._busy = False
                    self._lock.notify_all()
                    self._lock.wait()
                if self._closing:
                    return
                self._busy, self._beat = True, time.monotonic()
            try:
                self._advance()
            except Exception as error:  # of the device or the compiler: all its requests are lost
                LOG.exception("the engine's turn failed")
                self._fail(GritError(f"the engine failed: {error}"))
                self._runner = self._make_runner()
            self._settle()

    def _has_work(self) -> bool:
        return bool(self._queue) or not self._runner.idle or not self._passes.idle

    def _advance(self) -> None:
        """One turn: dispatch work of every kind, then hand out results of the turn before."""
        runner, passes = self._runner, self._passes
        with self._lock:
            for pending in [pending for pending in self._queue if pending.cancelled]:
                self._queue.discard(pending)
                pending.drop()
            passes.drop_cancelled()
            admitted = [self._queue.get() for _ in range(min(runner.free, len(self._queue)))]
            waiting = bool(self._queue)
            started = passes.dispatch()
        for pending in admitted:
            runner.admit(pending)
        runner.drop_cancelled()
        nothing_else = not (started or runner.calls or passes.batches)
        read = runner.prefill(self.limits.prefill_tokens, wait=0.01 if nothing_else else 0.0)
        more = runner.decode(self._steps(), stop_early=waiting)
        # One call runs while the tokens of the one before are read. Not where a request waits for a
        # slot: the call would run without it. On an accelerator waiting for results costs more.
        ahead = (read or more) and not (waiting and platform() == "cpu")
        while runner.calls > (1 if ahead else 0):
            runner.collect()
        while passes.batches > (1 if started and more else 0):
            passes.collect()

    def _steps(self) -> int:
        """Tokens of a call: one at a time where a step is long and somebody reads along."""
        runner = self._runner
        streamed = any(job is not None and job.request.on_tokens for job in runner.jobs)
        if not streamed:
            return STEPS
        return min(STEPS, max(1, int(STREAM_SECONDS * runner.steps_per_second)))

    def _settle(self) -> None:
        """Counts the requests that have ended."""
        with self._lock:
            for pending in [pending for pending in self._open if pending.done()]:
                self._open.discard(pending)
                self._count(pending)
            self._lock.notify_all()

    def _count(self, pending: Pending[Any]) -> None:
        if pending.cancelled:
            self._counts["cancelled"] += 1
            return
        if pending.error() is not None:
            self._counts["failed"] += 1
            return
        result = pending.result()
        self._counts["finished"] += 1
        if isinstance(result, GenerateResult):
            self._counts["prompt"] += len(pending.request.prompt)
            self._counts["cached"] += pending.request.cached
            self._counts["generated"] += len(result.tokens)

    def _check_idle(self) -> None:
        """An idle engine holds nothing; what it holds nevertheless is reported and given back."""
        if leaks := self._runner.leaks() + self._passes.leaks():
            self._leaks += 1
            LOG.error("the idle engine still held %s; its state is made anew", ", ".join(leaks))
            self._runner = self._make_runner()

    def _fail(self, error: GritError) -> None:
        with self._lock:
            while self._queue:
                self._queue.get().fail(error)
        self._runner.fail_all(error)
        self._passes.fail_all(error)

    def _notify(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _watch(self) -> None:
        """Gives the engine up if it does not advance."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing, min(self.limits.watchdog / 4, 1.0))
                if self._closing:
                    return
                stuck = self._busy and time.monotonic() - self._beat > self.limits.watchdog
                if not stuck:
                    continue
                self._healthy = False
                error = GritError(f"the engine has not advanced for {self.limits.watchdog:g} s")
                for pending in list(self._open):
                    pending.fail(error)
            LOG.critical("%s; the stacks of its threads follow", error)
            faulthandler.dump_traceback(sys.__stderr__)
            return


def _zeros(config: ModelConfig, tokens: int, codec: Codec | None) -> KVRecord:
    """A record of zeros."""
    L, K, H = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    dtype, ids = jnp.dtype(config.dtype), np.zeros(tokens, np.int32)
    k, v = np.zeros((L, 1, K, H, tokens), dtype), np.zeros((L, 1, K, tokens, H), dtype)
    if codec is None:
        return DocumentKV(ids, k[:, 0], v[:, 0])
    packed = jax.jit(lambda kv: codec.pack(kv))(KV(jnp.asarray(k), jnp.asarray(v)))
    return PackedRecord(ids, {name: np.asarray(a)[:, 0] for name, a in packed.items()}, codec)
