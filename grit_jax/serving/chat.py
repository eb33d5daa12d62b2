"""`POST /v1/chat/completions`."""

from __future__ import annotations

import dataclasses
from typing import Any

from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.answers import Delta, RunningAnswer
from grit_jax.serving.conversations import Conversation
from grit_jax.serving.documents import document_request, shown_documents, shown_timings
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.generation import (
    Stream,
    check_choices,
    new_id,
    now,
    samplings_of,
    stop_strings,
    streamed,
    token_logprobs,
    usage_of,
)
from grit_jax.serving.messages import plain_messages
from grit_jax.serving.protocol import ChatBody
from grit_jax.serving.service import Service, gather
from grit_jax.serving.tools import AnswerReader, ToolUse, chat_tools, tool_use
from grit_jax.text.length import MAX_NEW_TOKENS, DefaultLength


@dataclasses.dataclass(frozen=True)
class _Form:
    """What all parts of a reply have in common."""

    service: Service
    name: str
    id: str
    created: int
    top: int | None  # most likely tokens beside each; None: no log-probabilities
    prepared: PreparedQuestion | None = None  # the documents that the answer is based on
    tools: ToolUse | None = None

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
            "choices": choices,
        }

    def documents(self) -> dict[str, Any]:
        """What is added to say which documents were read."""
        return {} if self.prepared is None else {"grit": shown_documents(self.prepared)}

    def timings(self, answers: list[RunningAnswer]) -> dict[str, float] | None:
        """Seconds by stage of answers over documents."""
        return None if self.prepared is None else shown_timings(self.prepared, answers)

    def logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.top is None or delta.logprobs is None:
            return None
        content = token_logprobs(self.service, delta.tokens, delta.logprobs, self.top)
        return {"content": content, "refusal": None}


async def chat(service: Service, body: ChatBody, user: str) -> Reply | Stream:
    """Answers a conversation.

    Raises:
      ApiError: a request that is refused, or an answer that fails.
    """
    name = service.check_model(body.model)
    check_choices(service, body)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs: only with logprobs: true", "top_logprobs")
    tools = await tool_use(service, chat_tools(body))
    messages = plain_messages(body.messages, tools=tools is not None)
    samplings = samplings_of(body, _most_tokens(service, body), logprobs=bool(body.logprobs))
    stop = stop_strings(service, body)
    if body.response_format is not None and body.ignore_eos:
        raise bad_request("ignore_eos: not with response_format", "ignore_eos")
    conversation = Conversation(
        messages,
        samplings,
        stop,
        body.response_format,
        document_request(service, body, messages, tools=tools is not None),
        tools,
        whole=not body.stream,
    )
    constraints = await conversation.constraints(service)
    prepared = await conversation.prepare(service, user)
    answers = await conversation.start(service, user, prepared, constraints)
    top = (body.top_logprobs or 0) if body.logprobs else None
    form_ = _Form(service, name, new_id("chatcmpl"), now(), top, prepared, tools)
    if body.stream:
        return _stream(form_, body, answers)
    deltas = await gather([answer.complete() for answer in answers])
    usage = usage_of(answers, len(answers))
    choices = [_choice(form_, number, delta) for number, delta in enumerate(deltas)]
    reply = form_.body("chat.completion", choices)
    reply["usage"] = usage.body()
    if prepared is not None:
        reply |= form_.documents()
        reply["grit"]["timings"] = form_.timings(answers)
    return Reply(reply, usage.prompt, usage.cached, usage.completion)


def _choice(form: _Form, number: int, delta: Delta) -> dict[str, Any]:
    """A whole answer."""
    said, finished = AnswerReader(form.tools).message(delta)
    return {
        "index": number,
        "message": {"role": "assistant", **said, "refusal": None, "annotations": []},
        "logprobs": form.logprobs(delta),
        "finish_reason": finished,
    }


def _most_tokens(service: Service, body: ChatBody) -> int:
    """Tokens of an answer, at most: by default what the prompt leaves of the context."""
    given = (
        body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    )
    if given is None:
        # Documents leave room for an answer; a prompt leaves what it leaves.
        return int(MAX_NEW_TOKENS) if body.has_documents else DefaultLength(service.context)
    if given < 1:
        raise bad_request("max_tokens: expected at least 1", "max_tokens")
    return given


def _stream(form: _Form, body: ChatBody, answers: list[RunningAnswer]) -> Stream:
    usage_wanted = body.stream_options is not None and bool(body.stream_options.include_usage)
    usage = lambda: usage_of(answers, len(answers))
    readers = [AnswerReader(form.tools) for _ in answers]

    def part(
        number: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finished: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": number,
            "delta": content,
            "logprobs": logprobs,
            "finish_reason": finished,
        }
        chunk = form.body("chat.completion.chunk", [choice])
        return chunk | {"usage": None} if usage_wanted else chunk

    def head(number: int) -> list[dict[str, Any]]:
        first = part(number, {"role": "assistant", "content": ""})
        return [first | form.documents() if number == 0 else first]

    def last() -> dict[str, Any]:
        chunk = form.body("chat.completion.chunk", []) | {"usage": usage().body()}
        timings = form.timings(answers)
        return chunk if timings is None else chunk | {"grit": {"timings": timings}}

    def chunk(number: int, delta: Delta) -> dict[str, Any] | None:
        fields, finished = readers[number].delta(delta)
        logprobs = form.logprobs(delta)
        if not fields and finished is None and logprobs is None:
            return None
        return part(number, fields, logprobs, finished)

    events = streamed(answers, head, chunk, last if usage_wanted else None)
    return Stream(events, usage, answers)
