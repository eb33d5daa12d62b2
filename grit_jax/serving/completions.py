"""`POST /v1/completions`: prompts as text or as token ids, with `echo` and `logprobs`."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.requests import GenerateRequest, ScoreRequest
from grit_jax.serving.answers import Delta, RunningAnswer, start_all
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.generation import (
    DONE,
    Stream,
    Usage,
    check_choices,
    event,
    finite,
    new_id,
    now,
    samplings_of,
    stop_strings,
    streamed,
    usage_of,
)
from grit_jax.serving.protocol import CompletionBody
from grit_jax.serving.service import Service, gather
from grit_jax.serving.tokens import text_ids

MOST_TOKENS = 16  # OpenAI's default of `max_tokens`


@dataclasses.dataclass
class _Prompt:
    """A prompt, and its text and log-probabilities where they are echoed.

    Attributes:
      logprobs: of all tokens but the first.
    """

    ids: list[int]
    text: str = ""
    logprobs: TokenLogprobs | None = None


async def completions(service: Service, body: CompletionBody, user: str) -> Reply | Stream:
    """Continues prompts.

    Raises:
      ApiError: a request that is refused, or an answer that fails.
    """
    name = service.check_model(body.model)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request("best_of: expected the number of answers, n, or nothing", "best_of")
    given = _inputs(service, body)
    check_choices(service, body, len(given))
    most = MOST_TOKENS if body.max_tokens is None else body.max_tokens
    samplings = samplings_of(body, max(most, 1), logprobs=body.logprobs is not None)
    stop = stop_strings(service, body)
    service.check_ready()
    prompts = await service.prepare(lambda: _prompts(service, body, given))
    answers: list[RunningAnswer] = []
    if most:
        requests = [
            GenerateRequest(prompt.ids, (), sampling, name=f"prompt {number}", user=user)
            for number, prompt in enumerate(prompts)
            for sampling in samplings
        ]
        answers = start_all(service, requests, stop, whole=not body.stream)
    try:
        if body.echo and body.logprobs is not None:
            await gather([_score(service, prompt, user) for prompt in prompts])
        form = _Form(service, name, body, prompts, answers, len(samplings))
        if body.stream:
            return form.stream()
        return await form.reply()
    except BaseException:
        for answer in answers:
            answer.end()
        raise


@dataclasses.dataclass
class _Form:
    """The form of a reply. Answer `i` continues prompt `i // per_prompt`."""

    service: Service
    name: str
    request: CompletionBody
    prompts: Sequence[_Prompt]
    answers: list[RunningAnswer]
    per_prompt: int

    def __post_init__(self) -> None:
        self.id, self.created = new_id("cmpl"), now()
        self._offsets = [0] * self.choices

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.per_prompt

    async def reply(self) -> Reply:
        deltas = [Delta("", [], None, "length")] * self.choices
        if self.answers:
            deltas = await gather([answer.complete() for answer in self.answers])
        usage = self.usage()
        choices = []
        for number, delta in enumerate(deltas):
            echoed = self._echo(number) if self.request.echo else None
            own = self._choice(number, delta.text, delta.tokens, delta.logprobs, delta.finished)
            choices.append(own if echoed is None else _joined(echoed, own))
        body = self._body(choices) | {"usage": usage.body()}
        return Reply(body, usage.prompt, usage.cached, usage.completion)

    def stream(self) -> Stream:
        options = self.request.stream_options
        wanted = options is not None and bool(options.include_usage)
        with_usage = lambda chunk: chunk | {"usage": None} if wanted else chunk

        def head(number: int) -> list[dict[str, Any]]:
            bodies = [self._echo(number)] if self.request.echo else []
            if not self.answers:
                bodies.append(self._choice(number, "", [], None, "length"))
            return [with_usage(self._body([choice])) for choice in bodies]

        def chunk(number: int, delta: Delta) -> dict[str, Any]:
            choice = self._choice(number, delta.text, delta.tokens, delta.logprobs, delta.finished)
            return with_usage(self._body([choice]))

        last = (lambda: self._body([]) | {"usage": self.usage().body()}) if wanted else None
        heads = [body for number in range(self.choices) for body in head(number)]
        events = streamed(self.answers, lambda n: [] if n else heads, chunk, last)
        if not self.answers:
            events = _only(heads, last)
        return Stream(events, self.usage, self.answers)

    def usage(self) -> Usage:
        if self.answers:
            return usage_of(self.answers, self.per_prompt)
        return Usage(sum(len(prompt.ids) for prompt in self.prompts))

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "choices": choices,
        }

    def _echo(self, number: int) -> dict[str, Any]:
        prompt = self.prompts[number // self.per_prompt]
        return self._choice(number, prompt.text, prompt.ids, prompt.logprobs, None)

    def _choice(
        self,
        number: int,
        text: str,
        tokens: Sequence[int],
        logprobs: TokenLogprobs | None,
        finished: str | None,
    ) -> dict[str, Any]:
        choice = {"index": number, "text": text, "finish_reason": finished, "logprobs": None}
        if self.request.logprobs is not None:
            choice["logprobs"] = self._logprobs(number, tokens, logprobs)
        return choice

    def _logprobs(
        self, number: int, tokens: Sequence[int], logprobs: TokenLogprobs | None
    ) -> dict[str, Any]:
        """Log-probabilities in the form of completions; a prompt's first token has none."""
        texts = [self._token(token) for token in tokens]
        missing = len(tokens) - (len(logprobs) if logprobs is not None else 0)
        values: list[float | None] = [None] * missing
        tops: list[dict[str, float] | None] = [None] * missing
        for place, token in enumerate(tokens[missing:]):
            assert logprobs is not None and self.request.logprobs is not None
            values.append(finite(logprobs.chosen[place]))
            count = self.request.logprobs
            best = zip(logprobs.top_ids[place][:count], logprobs.top[place][:count], strict=True)
            top: dict[str, float] = {}
            for other, logprob in best:
                top.setdefault(self._token(int(other)), finite(logprob))
            top.setdefault(self._token(token), finite(logprobs.chosen[place]))
            tops.append(top)
        offsets = []
        for text in texts:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _token(self, token: int) -> str:
        return self.service.token_bytes[token].decode("utf-8", "replace")


def _inputs(service: Service, body: CompletionBody) -> Sequence[str] | Sequence[list[int]]:
    """The prompts as a list."""
    given: Any = body.prompt
    single = isinstance(given, str) or (given and isinstance(given[0], int))
    prompts = [given] if single else given
    if not prompts:
        raise bad_request("prompt: the list is empty", "prompt")
    if len(prompts) > (most := service.settings.limits.items):
        raise bad_request(
            f"prompt: {len(prompts)} prompts, and a request may have {most}", "prompt"
        )
    return prompts


def _prompts(service: Service, body: CompletionBody, given: Sequence[Any]) -> list[_Prompt]:
    """Token ids of the prompts, and their texts."""
    special = body.add_special_tokens is not False
    prompts = []
    for number, prompt in enumerate(given):
        is_text = isinstance(prompt, str)
        ids = text_ids(service, prompt, add_special_tokens=special) if is_text else list(prompt)
        if not ids:
            raise bad_request(f"prompt[{number}]: must not be empty", "prompt")
        if max(ids) >= (size := service.model.config.vocab_size):
            raise bad_request(
                f"prompt[{number}]: token {max(ids)} is outside the vocabulary (0 to {size - 1})",
                "prompt",
            )
        text = ""
        if body.echo:
            text = prompt if is_text else service.model.tokenizer.decode(ids, skip_special=False)
        prompts.append(_Prompt(ids, text))
    tokens = sum(len(prompt.ids) for prompt in prompts)
    if tokens > (most := service.settings.limits.tokens):
        raise bad_request(f"prompt: {tokens} tokens, and a request may have {most}", "prompt")
    return prompts


async def _score(service: Service, prompt: _Prompt, user: str) -> None:
    """Sets the log-probabilities of a prompt's tokens."""
    if len(prompt.ids) < 2:
        return
    pending = service.submit(ScoreRequest(prompt.ids, 1, "prompt", user, top=True))
    prompt.logprobs = await service.result(pending)  # type: ignore[assignment]


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One choice of an echoed prompt and its answer."""
    joined = second | {"text": first["text"] + second["text"]}
    if second["logprobs"] is not None:
        joined["logprobs"] = {
            name: first["logprobs"][name] + values for name, values in second["logprobs"].items()
        }
    return joined


async def _only(heads: list[dict[str, Any]], last: Any) -> AsyncGenerator[bytes, None]:
    """The stream of a request for no tokens."""
    for body in heads:
        yield event(body)
    if last is not None:
        yield event(last())
    yield DONE
