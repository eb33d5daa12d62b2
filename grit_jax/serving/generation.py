"""What chat and completions share: settings of answers, log-probabilities, usage, streams."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import Adjustments
from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.sampling import Sampling
from grit_jax.serving.answers import Delta, RunningAnswer, merged
from grit_jax.serving.errors import ApiError, bad_request
from grit_jax.serving.protocol import GenerationBody
from grit_jax.serving.service import Service

SMALLEST_TOP_P = 1e-9  # OpenAI allows 0, which leaves the most likely token
LOWEST = -9999.0  # in the place of minus infinity, as OpenAI has it
DONE = b"data: [DONE]\n\n"


@dataclasses.dataclass
class Usage:
    """Tokens of a request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def body(self) -> dict[str, Any]:
        """As OpenAI writes them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {
                "cached_tokens": self.cached,
                "cache_write_tokens": 0,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


def usage_of(answers: Sequence[RunningAnswer], per_prompt: int) -> Usage:
    """Tokens of answers, of which each prompt has `per_prompt`; a prompt counts once."""
    prompts = answers[::per_prompt]
    return Usage(
        sum(answer.prompt_tokens for answer in prompts),
        sum(answer.generated for answer in answers),
        sum(answer.cached for answer in prompts),
    )


@dataclasses.dataclass
class Stream:
    """A reply of server-sent events from answers under way."""

    events: AsyncGenerator[bytes, None]
    usage: Callable[[], Usage]
    answers: Sequence[RunningAnswer]

    async def close(self) -> None:
        """Ends the answers, whether the events were read or not."""
        await self.events.aclose()
        for answer in self.answers:
            answer.end()


def samplings_of(body: GenerationBody, max_new_tokens: int, *, logprobs: bool) -> list[Sampling]:
    """The settings of a request's `n` answers to a prompt.

    Raises:
      ApiError: 400 for a `logit_bias` that is no token id, or a value that the engine refuses.
    """
    seed = body.seed if body.seed is not None else secrets.randbits(32)
    top_p = 1.0 if body.top_p is None else max(body.top_p, SMALLEST_TOP_P)
    try:
        adjustments = Adjustments(
            body.presence_penalty or 0.0, body.frequency_penalty or 0.0, _biases(body), logprobs
        )
        return [
            Sampling(
                max_new_tokens,
                1.0 if body.temperature is None else body.temperature,
                top_p,
                max(body.top_k or 0, 0),
                seed + number,
                bool(body.ignore_eos),
                adjustments,
            )
            for number in range(body.n or 1)
        ]
    except GritError as error:
        raise bad_request(str(error)) from None


def _biases(body: GenerationBody) -> tuple[tuple[int, float], ...]:
    biases = []
    for token, bias in (body.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise bad_request(
                f"logit_bias: expected token ids as keys, got {token!r:.40}", "logit_bias"
            )
        biases.append((int(token), float(bias)))
    return tuple(biases)


def stop_strings(service: Service, body: GenerationBody) -> tuple[str, ...]:
    """The strings that end an answer.

    Raises:
      ApiError: 400 for too many, or an empty one.
    """
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > (most := service.settings.limits.stops):
        raise bad_request(f"stop: {len(stops)} strings, and a request may have {most}", "stop")
    if "" in stops:
        raise bad_request("stop: must not be empty", "stop")
    return stops


def check_choices(service: Service, body: GenerationBody, prompts: int = 1) -> None:
    """Raises ApiError: 400 for more answers than a request may have, and for stream options
    without a stream."""
    choices = (body.n or 1) * prompts
    if choices > (most := service.settings.limits.choices):
        raise bad_request(f"n: {choices} answers, and a request may have {most}", "n")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options: only with stream: true", "stream_options")


def token_logprobs(
    service: Service, tokens: Sequence[int], logprobs: TokenLogprobs, top: int
) -> list[dict[str, Any]]:
    """The log-probabilities of tokens in the form of chat completions."""
    return [
        {
            **_token(service, token, logprobs.chosen[place]),
            "top_logprobs": [
                _token(service, int(other), logprob)
                for other, logprob in zip(
                    logprobs.top_ids[place][:top], logprobs.top[place][:top], strict=True
                )
            ],
        }
        for place, token in enumerate(tokens)
    ]


def _token(service: Service, token: int, logprob: Any) -> dict[str, Any]:
    text = service.token_bytes[token]
    return {
        "token": text.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(text),
    }


def finite(logprob: Any) -> float:
    """A log-probability that JSON can hold."""
    return max(float(logprob), LOWEST)


def new_id(prefix: str) -> str:
    """A new identifier."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + text.encode() + b"\n\n"


async def streamed(
    answers: Sequence[RunningAnswer],
    head: Callable[[int], list[dict[str, Any]]],
    chunk: Callable[[int, Delta], dict[str, Any] | None],
    usage_chunk: Callable[[], dict[str, Any]] | None,
) -> AsyncGenerator[bytes, None]:
    """The events of a stream.

    Args:
      head: what precedes an answer.
      chunk: a part of an answer; None: nothing of it is certain yet.
      usage_chunk: what follows all answers.
    """
    try:
        for number in range(len(answers)):
            for body in head(number):
                yield event(body)
        parts = merged(answers)
        try:
            async for number, delta in parts:
                if not (delta.text or delta.finished or delta.logprobs is not None):
                    continue
                if (grown := chunk(number, delta)) is not None:
                    yield event(grown)
        finally:
            await parts.aclose()
        if usage_chunk is not None:
            yield event(usage_chunk())
    except ApiError as error:
        yield event(error.body())
    finally:
        for answer in answers:
            answer.end()
    yield DONE
