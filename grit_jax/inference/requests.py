"""Requests to the engine, and their results."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, UInt

from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.records import KVRecord, Positions
from grit_jax.inference.sampling import GREEDY, Sampling
from grit_jax.text.length import DefaultLength

Finish = Literal["stop", "length"]
MOST_LABELS = 64  # of a `LabelRequest`
R = TypeVar("R")


class TokenConstraint(Protocol):
    """Which tokens an answer may have, given those that it has; the engine's thread calls it."""

    def allowed(self) -> UInt[np.ndarray, " W"]:
        """The packed mask of the tokens that may come next (see `adjustments.AdjustmentRows`)."""
        ...

    def accept(self, token: int) -> None:
        """Adds a token, an end of sequence included.

        Raises:
          GritError: it is not allowed, or the constraint cannot go on.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """A prompt, the records before it, and how it is continued.

    Attributes:
      prompt: token ids, at least one.
      records: documents and queries before the prompt, in the order of reading.
      positions: rotary positions of the records (see `records.Positions`).
      on_tokens: called with new tokens as they are chosen, in the engine's thread.
      on_logprobs: called with the log-probabilities of new tokens, right before `on_tokens`; for
        requests that ask for log-probabilities (`Adjustments.logprobs`).
      name: what errors call the request.
      user: requests of different users are served in turn.
      constraint: of its tokens, for this request alone; in an adjustable engine. While such an
        answer is under way, all of them are decoded one token a call.
      adapter: the number of the model's adapter (`GritLM.adapters`) from 1; 0: the model itself.
    """

    prompt: Sequence[int]
    records: Sequence[KVRecord] = ()
    sampling: Sampling = GREEDY
    positions: Positions = "running"
    on_tokens: Callable[[list[int]], None] | None = None
    on_logprobs: Callable[[TokenLogprobs], None] | None = None
    name: str = "the prompt"
    user: str = ""
    constraint: TokenConstraint | None = None
    adapter: int = 0

    @property
    def cached(self) -> int:
        """Tokens of the records."""
        return sum(len(record.tokens) for record in self.records)

    @property
    def length(self) -> int:
        """Tokens that the request may take in all: records, prompt and answer."""
        return self.cached + len(self.prompt) + self.sampling.max_new_tokens


@dataclasses.dataclass(frozen=True)
class SlotRoom:
    """What a slot has room for.

    Attributes:
      capacity: tokens of prompt and answer, and of records unless they have a place of their own.
      apart: tokens of that place, None without one.
    """

    capacity: int
    apart: int | None = None

    @property
    def records(self) -> int:
        """Tokens of records that a slot holds."""
        return self.capacity if self.apart is None else self.apart

    def lowered(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the default of `max_new_tokens` lowered to what its slot has left."""
        new = request.sampling.max_new_tokens
        left = self.capacity - len(request.prompt) - (request.cached if self.apart is None else 0)
        if not isinstance(new, DefaultLength) or not 1 <= left < new:
            return request
        sampling = dataclasses.replace(request.sampling, max_new_tokens=left)
        return dataclasses.replace(request, sampling=sampling)

    def too_long(self, request: GenerateRequest) -> str | None:
        """What of a request a slot has no room for; None: it fits."""
        beside, cached = len(request.prompt) + request.sampling.max_new_tokens, request.cached
        if self.apart is None:
            beside, cached = beside + cached, 0
        if beside > self.capacity:
            return f"{beside} tokens, and a slot holds {self.capacity}"
        if cached > self.records:
            return f"{cached} tokens of records, and a slot holds {self.records}"
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class EmbedRequest:
    """Token ids of texts in the embedding format.

    Attributes:
      ids: of each text, at least one.
      pool_starts: tokens at the beginning of each text that mean pooling leaves out.
      name, user, adapter: as of `GenerateRequest`.
    """

    ids: Sequence[Sequence[int]]
    pool_starts: Sequence[int]
    name: str = "the text"
    user: str = ""
    adapter: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Token ids whose log-probabilities are asked for, from `start` (at least 1) on, given all
    tokens before each. With `top`, the most likely tokens in their places, too."""

    ids: Sequence[int]
    start: int
    name: str = "the text"
    user: str = ""
    top: bool = False
    adapter: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class LabelRequest:
    """Prompts, and the tokens whose log-probabilities right after each are asked for.

    Attributes:
      ids: of each prompt, at least one.
      labels: token ids, at most `MOST_LABELS`.
      name, user, adapter: as of `GenerateRequest`.
    """

    ids: Sequence[Sequence[int]]
    labels: Sequence[int]
    name: str = "the prompt"
    user: str = ""
    adapter: int = 0


@dataclasses.dataclass
class Times:
    """Moments of a request, in seconds of `time.monotonic`; None: not reached.

    Attributes:
      load: seconds of waiting for records, which is no moment.
    """

    submitted: float = dataclasses.field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None
    load: float = 0.0


@dataclasses.dataclass
class Seconds:
    """Where the time went: waiting for records, reading prompts (first tokens included), decoding
    the rest."""

    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass
class GenerateResult:
    """An answer.

    Attributes:
      tokens: without the end of sequence.
      finished: "stop" at an end of sequence, "length" at the limit.
      logits: those that each token was chosen from, that of the end of sequence included, where the
        engine returns them.
      logprobs: of the tokens, where the request asks for them.
    """

    tokens: list[int]
    finished: Finish
    times: Times
    logits: Float[np.ndarray, "n V"] | None = None
    logprobs: TokenLogprobs | None = None


class Pending(Generic[R]):
    """The result of a request to come. `cancel` ends the request wherever it is."""

    def __init__(self, request: Any, wake: Callable[[], None] = lambda: None):
        self.request, self.times = request, Times()
        self._future: Future[R] = Future()
        self._cancelled = threading.Event()
        self._wake = wake

    def result(self, timeout: float | None = None) -> R:
        """Waits for the result.

        Raises:
          GritError: the request failed.
          CancelledError: it was cancelled.
          TimeoutError: it took longer than `timeout` seconds.
        """
        return self._future.result(timeout)

    def error(self) -> BaseException | None:
        """The error of a request that is done; None: it has a result."""
        return self._future.exception(0)

    def cancel(self) -> None:
        """Ends the request; its slot is free for another one soon after."""
        self._cancelled.set()
        self._wake()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._future.done()

    def on_done(self, call: Callable[[], None]) -> None:
        """Calls `call` once there is a result or an error, in the thread that sets it; at once if
        there is one."""
        self._future.add_done_callback(lambda _: call())

    def finish(self, result: R) -> None:
        """Sets the result; for the engine."""
        self.times.finished = time.monotonic()
        if not self._future.done():
            self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Sets the error; for the engine."""
        self.times.finished = time.monotonic()
        if not self._future.done():
            self._future.set_exception(error)

    def drop(self) -> None:
        """Sets the error of a cancelled request; for the engine."""
        self.fail(CancelledError())
