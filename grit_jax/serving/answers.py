"""Answers while the engine generates them, read in the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from grit_jax.inference.logprobs import TokenLogprobs, joined
from grit_jax.inference.requests import GenerateRequest, GenerateResult, Pending
from grit_jax.serving.answer_text import AnswerText
from grit_jax.serving.request_trace import AnswerTrace, current
from grit_jax.serving.service import Service, call_in_loop, outcome


@dataclasses.dataclass
class Delta:
    """What an answer has grown by.

    Attributes:
      finished: "stop" or "length" with its last part, else None.
    """

    text: str
    tokens: list[int]
    logprobs: TokenLogprobs | None = None
    finished: str | None = None


class RunningAnswer:
    """One answer under way.

    Args:
      stop: strings that end it.
      whole: nobody reads it before it is complete.
      cached: tokens of the request's records that came from an index.
      kept: special tokens that are part of its text, and how they are spelled.

    Raises:
      ApiError: the engine does not take the request.
    """

    def __init__(
        self,
        service: Service,
        request: GenerateRequest,
        stop: Sequence[str],
        *,
        whole: bool,
        cached: int = 0,
        kept: Mapping[int, str] | None = None,
    ):
        self.cached = cached
        self._service, self._loop = service, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[list[int], TokenLogprobs | None] | None] = asyncio.Queue()
        self._text = AnswerText(service.model.tokenizer, stop, kept)
        self._logprobs: TokenLogprobs | None = None
        self._reads_along = bool(stop) or not whole
        self._finished: str | None = None
        self._ended, self._trace = False, current()
        self.request, self.generated = request, 0
        if self._reads_along:
            request = dataclasses.replace(
                request,
                on_tokens=self._on_tokens,
                on_logprobs=self._on_logprobs if request.sampling.adjustments.logprobs else None,
            )
        self.pending: Pending[GenerateResult] = service.submit(request)
        self.most = int(self.pending.request.sampling.max_new_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, those of records included."""
        return len(self.request.prompt) + self.request.cached

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the stages until now, or until the answer was complete."""
        times = self.pending.times
        end = times.finished if times.finished is not None else time.monotonic()
        admitted = times.admitted if times.admitted is not None else end
        first = times.first_token if times.first_token is not None else end
        return {
            "queue": admitted - times.submitted,
            "load": times.load,
            "prefill": max(0.0, first - admitted - times.load),
            "decode": max(0.0, end - first),
        }

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The answer part by part; when the caller stops reading, it is cancelled.

        Raises:
          ApiError: it failed.
        """
        try:
            self.pending.on_done(lambda: call_in_loop(self._loop, lambda: self._put(None)))
            while (event := await self._events.get()) is not None:
                tokens, logprobs = event
                self.generated += len(tokens)
                text = self._text.write(tokens)
                if self._text.stopped:
                    self._finished = "stop"
                yield Delta(text, tokens, logprobs, self._finished)
                if self._finished:
                    return
            result = outcome(self.pending)
            if not self._reads_along:
                self.generated = len(result.tokens)
                text = self._text.write(result.tokens) + self._text.finish()
                self._finished = result.finished
                yield Delta(text, result.tokens, result.logprobs, self._finished)
                return
            text = self._text.finish()
            self._finished = "stop" if self._text.stopped else result.finished
            yield Delta(text, [], None, self._finished)
        finally:
            self.end()

    async def complete(self) -> Delta:
        """The whole answer."""
        parts: list[Delta] = []
        async with contextlib.aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                parts.append(delta)
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        return Delta(
            "".join(part.text for part in parts),
            [token for part in parts for token in part.tokens],
            joined(logprobs) if logprobs else None,
            self._finished,
        )

    def end(self) -> None:
        """Gives the slot back and counts the answer; once."""
        if self._ended:
            return
        self._ended = True
        if not self.pending.done():
            self.pending.cancel()
        now = time.monotonic()
        times = dataclasses.replace(self.pending.times, finished=now)
        self._service.took(now - times.submitted)
        if self._trace is not None:
            error = self.pending.error() if self.pending.done() else None
            failure = None if error is None or self.pending.cancelled else str(error)
            own = self.pending.times
            seen = dataclasses.replace(own) if own.finished is not None else times
            ended = AnswerTrace(seen, self.generated, self._finished or "abort", failure)
            self._trace.answers.append(ended)
        self._service.metrics.answered(
            times,
            self.prompt_tokens,
            self.cached,
            self.generated,
            self.most,
            self._finished or "abort",
        )

    def _on_logprobs(self, logprobs: TokenLogprobs) -> None:
        self._logprobs = logprobs

    def _on_tokens(self, tokens: list[int]) -> None:
        """In the engine's thread."""
        logprobs, self._logprobs = self._logprobs, None
        call_in_loop(self._loop, lambda: self._put((tokens, logprobs)))

    def _put(self, event: tuple[list[int], TokenLogprobs | None] | None) -> None:
        if not self._ended:
            self._events.put_nowait(event)


def start_all(
    service: Service,
    requests: Sequence[GenerateRequest],
    stop: Sequence[str],
    *,
    whole: bool,
    cached: int = 0,
    kept: Mapping[int, str] | None = None,
) -> list[RunningAnswer]:
    """Starts all answers of a request, or none; arguments as of `RunningAnswer`.

    Raises:
      ApiError: the engine does not take one of them.
    """
    answers: list[RunningAnswer] = []
    try:
        for request in requests:
            answers.append(
                RunningAnswer(service, request, stop, whole=whole, cached=cached, kept=kept)
            )
    except BaseException:
        for answer in answers:
            answer.end()
        raise
    service.metrics.asked(len(answers))
    return answers


async def merged(answers: Sequence[RunningAnswer]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The parts of several answers with the numbers of their answers, as they come."""
    events: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def read(number: int, answer: RunningAnswer) -> None:
        try:
            async with contextlib.aclosing(answer.deltas()) as deltas:
                async for delta in deltas:
                    events.put_nowait((number, delta))
            events.put_nowait(None)
        except Exception as error:
            events.put_nowait(error)

    tasks = [asyncio.ensure_future(read(i, answer)) for i, answer in enumerate(answers)]
    try:
        left = len(tasks)
        while left:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for answer in answers:
            answer.end()
