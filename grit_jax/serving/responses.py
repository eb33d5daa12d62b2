"""`/v1/responses`: OpenAI's Responses API, with the tool `file_search` over the server's stores and
functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from grit_jax.inference.sampling import Sampling
from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.answers import Delta, RunningAnswer
from grit_jax.serving.conversations import Conversation
from grit_jax.serving.documents import shown_documents, shown_timings
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import ApiError, bad_request
from grit_jax.serving.file_search import citations, results_of, searched
from grit_jax.serving.generation import (
    Stream,
    Usage,
    samplings_of,
    token_logprobs,
    usage_of,
)
from grit_jax.serving.protocol import GenerationBody
from grit_jax.serving.response_events import ResponseForm, SearchCall
from grit_jax.serving.response_input import input_items, messages_of_items
from grit_jax.serving.response_protocol import INCLUDABLE, LOGPROBS, ResponseBody
from grit_jax.serving.response_store import StoredResponse
from grit_jax.serving.response_tools import response_tools
from grit_jax.serving.service import Service
from grit_jax.serving.structured import FIELD
from grit_jax.serving.tools import AnswerReader, tool_use
from grit_jax.text.length import MAX_NEW_TOKENS, DefaultLength

TEXT_FORMAT = "text.format"


async def responses(service: Service, body: ResponseBody, user: str) -> Reply | Stream:
    """Answers an input.

    Raises:
      ApiError: a request that is refused, or an answer that fails.
    """
    service = service.choose(body.model)
    for value in body.include or ():
        if value not in INCLUDABLE:
            raise bad_request(
                f"include: expected {' or '.join(INCLUDABLE)}, got {value!r:.60}", "include"
            )
    items = input_items(body.input)
    if body.previous_response_id is not None:
        previous = service.responses.get(body.previous_response_id, user, "previous_response_id")
        items = [*previous.items, *previous.body["output"], *items]
    messages = messages_of_items(items)
    if body.instructions:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    asked = response_tools(body, messages)
    tools = await tool_use(service, asked.functions)
    may_call = tools is not None and tools.shown is not None
    if may_call and _logprobs_wanted(body):
        raise bad_request("include: no log-probabilities with functions among the tools", "include")
    documents = None
    if asked.search is not None:
        documents = searched(service, asked.search, messages, tools=tools is not None)
    if documents is not None:
        service = service.choose_for_store(documents.store, body.model)
    conversation = Conversation(
        messages,
        _samplings(service, body, over_documents=documents is not None),
        (),
        _response_format(body),
        documents,
        tools,
        whole=not body.stream,
        param="input",
    )
    try:
        constraints = await conversation.constraints(service)
    except ApiError as error:
        message = error.message.replace(f"{FIELD}.json_schema", TEXT_FORMAT)
        raise bad_request(message.replace(FIELD, TEXT_FORMAT), TEXT_FORMAT, error.code) from None
    prepared = await conversation.prepare(service, user)
    [answer] = await conversation.start(service, user, prepared, constraints)
    form = ResponseForm(service.name, body, tools=tools if may_call else None)
    if prepared is not None and documents is not None:
        results = results_of(prepared)
        form.search = SearchCall(documents.question, results)
        form.citations = citations(results)
        form.extra = {"grit": shown_documents(prepared)}
    run = _Run(service, form, answer, StoredResponse(user, {}, items))
    run.prepared = prepared
    if body.stream:
        return Stream(run.events(), lambda: usage_of([answer], 1), [answer])
    return await run.reply()


def stored_response(service: Service, id: str, user: str) -> dict[str, Any]:
    """A response that was given before.

    Raises:
      ApiError: 404, there is none.
    """
    return service.responses.get(id, user).body


def delete_response(service: Service, id: str, user: str) -> dict[str, Any]:
    """Forgets a response.

    Raises:
      ApiError: 404, there is none.
    """
    service.responses.delete(id, user)
    return {"id": id, "object": "response", "deleted": True}


def stored_input(service: Service, id: str, user: str) -> dict[str, Any]:
    """The input items of a response, those of the responses that it continues included, the latest
    first.

    Raises:
      ApiError: 404, there is none.
    """
    items = service.responses.get(id, user).items[::-1]
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": False,
    }


def _samplings(service: Service, body: ResponseBody, *, over_documents: bool) -> list[Sampling]:
    """The settings of the answer."""
    most = body.max_output_tokens
    if most is None:
        # As in chat: documents leave room for an answer, a prompt leaves what it leaves.
        most = int(MAX_NEW_TOKENS) if over_documents else DefaultLength(service.context)
    settings = GenerationBody(temperature=body.temperature, top_p=body.top_p, seed=body.seed)
    return samplings_of(settings, most, logprobs=_logprobs_wanted(body))


def _logprobs_wanted(body: ResponseBody) -> bool:
    return LOGPROBS in (body.include or ()) or body.top_logprobs is not None


def _response_format(body: ResponseBody) -> dict[str, Any] | None:
    """`text.format` in the form of chat's `response_format`."""
    given = body.text.format if body.text is not None else None
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {k: v for k, v in given.items() if k != "type"}}


@dataclasses.dataclass
class _Run:
    """One answer on its way to a response.

    Attributes:
      stored: what is kept of the response, but for its body.
      prepared: the documents that it is based on.
    """

    service: Service
    form: ResponseForm
    answer: RunningAnswer
    stored: StoredResponse
    prepared: PreparedQuestion | None = None

    async def reply(self) -> Reply:
        """The whole response."""
        delta = await self.answer.complete()
        usage = usage_of([self.answer], 1)
        content, calls, _ = AnswerReader(self.form.tools).read(delta)
        for _ in (*self.form.more(content, calls, self._logprobs(delta)), *self.form.finish()):
            pass  # events that nobody reads
        body = self._finished(delta.finished, usage)
        return Reply(body, usage.prompt, usage.cached, usage.completion)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        finished, reader = None, AnswerReader(self.form.tools)
        try:
            for event in self.form.head():
                yield event
            async with contextlib.aclosing(self.answer.deltas()) as deltas:
                async for delta in deltas:
                    content, calls, _ = reader.read(delta)
                    for event in self.form.more(content, calls, self._logprobs(delta)):
                        yield event
                    finished = delta.finished
            for event in self.form.finish():
                yield event
            body = self._finished(finished, usage_of([self.answer], 1))
            for event in self.form.tail(body):
                yield event
        except ApiError as error:
            yield self.form.failed(error.message)
        finally:
            self.answer.end()

    def _finished(self, finished: str | None, usage: Usage) -> dict[str, Any]:
        """The body of the response that has ended, which is kept."""
        if self.prepared is not None:
            self.form.extra["grit"]["timings"] = shown_timings(self.prepared, [self.answer])
        status = "incomplete" if finished == "length" else "completed"
        body = self.form.body(status, self.form.output(status), usage)
        if body["store"]:
            self.service.responses.put(dataclasses.replace(self.stored, body=body))
        return body

    def _logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        if delta.logprobs is None:
            return []
        top = self.form.request.top_logprobs or 0
        return token_logprobs(self.service, delta.tokens, delta.logprobs, top)
