"""What is noted of a request while it is served, if requests are traced: its stages, its answers.

Nothing is noted, and nothing imported, without `--otlp-traces-endpoint`; `tracing` makes spans of
it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from grit_jax.inference.requests import Times


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the work: a child span.

    Attributes:
      began: a moment of `time.monotonic`.
      seconds: that it took.
    """

    name: str
    began: float
    seconds: float
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AnswerTrace:
    """An answer that has ended.

    Attributes:
      finished: "stop", "length", "tool_calls" or "abort".
      error: why it failed, if it did.
    """

    times: Times
    tokens: int
    finished: str
    error: str | None = None


@dataclasses.dataclass
class RequestTrace:
    """What is known of one request.

    Attributes:
      body: its fields, once they are parsed.
      attributes: of its span, beside those that every span has.
    """

    body: Any = None
    stages: list[Stage] = dataclasses.field(default_factory=list)
    answers: list[AnswerTrace] = dataclasses.field(default_factory=list)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def consecutive(self, began: float, seconds: Mapping[str, float]) -> None:
        """Notes stages that followed each other."""
        for name, length in seconds.items():
            self.stages.append(Stage(name, began, length))
            began += length

    def batch(self, times: Times) -> None:
        """Notes a request to the engine that is no answer: texts that were embedded or scored."""
        finished = times.finished if times.finished is not None else time.monotonic()
        admitted = times.admitted if times.admitted is not None else times.submitted
        if admitted > times.submitted:
            self.stages.append(Stage("queue", times.submitted, admitted - times.submitted))
        self.stages.append(Stage("encode", admitted, finished - admitted))


_CURRENT: contextvars.ContextVar[RequestTrace | None] = contextvars.ContextVar(
    "request_trace", default=None
)


def current() -> RequestTrace | None:
    """That of the request that is being served; None: it is not traced."""
    return _CURRENT.get()


@contextlib.contextmanager
def tracing(trace: RequestTrace) -> Iterator[None]:
    """Makes a trace the current one."""
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Notes what is done within as a stage of the current request, if it is traced."""
    trace = current()
    if trace is None:
        yield
        return
    began = time.monotonic()
    try:
        yield
    finally:
        trace.stages.append(Stage(name, began, time.monotonic() - began))
