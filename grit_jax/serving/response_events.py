"""A response as OpenAI writes it: whole, and as the events of a stream."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from grit_jax.serving.generation import Usage
from grit_jax.serving.response_protocol import RESULTS, ResponseBody
from grit_jax.serving.tools import ToolUse
from grit_jax.text.tool_calls import CallPart

Event = dict[str, Any]


@dataclasses.dataclass
class SearchCall:
    """The output item of a search that was made.

    Attributes:
      query: what was searched for.
      results: the documents that were read (`file_search.results_of`).
    """

    query: str
    results: list[dict[str, Any]]
    id: str = dataclasses.field(default_factory=lambda: new_item_id("fs"))

    def item(self, status: str, shown: bool) -> dict[str, Any]:
        """As JSON; `shown`: with the results."""
        results = self.results if shown and status == "completed" else None
        queries = [self.query]
        return {
            "id": self.id,
            "type": "file_search_call",
            "status": status,
            "queries": queries,
            "results": results,
        }


@dataclasses.dataclass
class _Message:
    """The message of an answer under way; `index`: its place in the output."""

    index: int
    text: str = ""
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    id: str = dataclasses.field(default_factory=lambda: new_item_id("msg"))

    @property
    def place(self) -> dict[str, Any]:
        """Where the text is."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The text as JSON."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": list(annotations),
            "logprobs": self.logprobs,
        }


@dataclasses.dataclass
class _FunctionCall:
    """A call of a function; `index`: its place in the output."""

    index: int
    call_id: str
    name: str
    arguments: str = ""
    id: str = dataclasses.field(default_factory=lambda: new_item_id("fc"))

    def item(self, status: str) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


@dataclasses.dataclass
class ResponseForm:
    """The form of one response, which grows with its answer: `head`, `more` as often as there is
    more, `finish` and `tail`.

    Attributes:
      name: of the model.
      request: what was asked.
      search: the search that was made; None: none.
      citations: annotations of the answer.
      extra: our own fields, `grit`.
      tools: functions that the answer may call; the message then begins when it has a text.
    """

    name: str
    request: ResponseBody
    search: SearchCall | None = None
    citations: Sequence[dict[str, Any]] = ()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    tools: ToolUse | None = None

    def __post_init__(self) -> None:
        self.id = new_item_id("resp")
        self.created = int(time.time())
        self._number = 0
        self._message: _Message | None = None
        self._calls: list[_FunctionCall] = []

    @property
    def _shows_results(self) -> bool:
        return RESULTS in (self.request.include or ())

    # ---- the response ----------------------------------------------------------------------------

    def body(self, status: str, output: list[dict[str, Any]], usage: Usage | None) -> Event:
        """The response object.

        Args:
          status: "in_progress", "completed", "incomplete" or "failed".
        """
        request, is_over = self.request, status == "completed"
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        form = (request.text.format if request.text is not None else None) or {"type": "text"}
        temperature = 1.0 if request.temperature is None else request.temperature
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "completed_at": int(time.time()) if is_over else None,
            "background": False,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "model": self.name,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": request.is_stored,
            "temperature": temperature,
            "text": {"format": form},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": usage_body(usage) if usage is not None else None,
            "user": request.user,
            **self.extra,
        }

    def output(self, status: str) -> list[dict[str, Any]]:
        """The output items of a response that has ended; the last of them has its status."""
        items = [] if self.search is None else [self.search.item("completed", self._shows_results)]
        last = self._size - 1
        own: dict[int, dict[str, Any]] = {}
        if (message := self._message) is not None:
            state = status if message.index == last else "completed"
            own[message.index] = message.item(state, [message.part(self.citations)])
        for call in self._calls:
            own[call.index] = call.item(status if call.index == last else "completed")
        return items + [own[index] for index in sorted(own)]

    @property
    def _size(self) -> int:
        """Output items that there are."""
        return (self.search is not None) + (self._message is not None) + len(self._calls)

    # ---- events ----------------------------------------------------------------------------------

    def head(self) -> Iterator[bytes]:
        """What precedes the answer: the response begins, the search is made, the message begins."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self.body("in_progress", [], None))
        if self.search is not None:
            place = {"output_index": 0, "item_id": self.search.id}
            begun = self.search.item("in_progress", self._shows_results)
            done = self.search.item("completed", self._shows_results)
            yield self._event("response.output_item.added", output_index=0, item=begun)
            for stage in ("in_progress", "searching", "completed"):
                yield self._event(f"response.file_search_call.{stage}", **place)
            yield self._event("response.output_item.done", output_index=0, item=done)
        if self.tools is None:
            yield from self._begin_message()

    def more(
        self, text: str, calls: Sequence[CallPart], logprobs: Sequence[dict[str, Any]]
    ) -> Iterator[bytes]:
        """More of the text and of calls."""
        if text or logprobs:
            if self._message is None:
                yield from self._begin_message()
            message = self._begun
            message.text += text
            message.logprobs += logprobs
            yield self._event(
                "response.output_text.delta", **message.place, delta=text, logprobs=[*logprobs]
            )
        for part in calls:
            if part.name is not None:
                if self._calls:
                    yield from self._end_call(self._calls[-1].item("completed"))
                assert self.tools is not None
                self._calls.append(_FunctionCall(self._size, self.tools.call_id(), part.name))
                begun = self._calls[-1]
                yield self._event(
                    "response.output_item.added",
                    output_index=begun.index,
                    item=begun.item("in_progress"),
                )
            call = self._calls[-1]
            call.arguments += part.arguments
            if part.arguments:
                place = {"item_id": call.id, "output_index": call.index}
                yield self._event(
                    "response.function_call_arguments.delta", **place, delta=part.arguments
                )

    def finish(self) -> list[bytes]:
        """After the last part, before `output`: an answer that says nothing is an empty message."""
        return [*self._begin_message()] if self._message is None and not self._calls else []

    def tail(self, body: Event) -> Iterator[bytes]:
        """What follows the answer: its citations, the end of message, call and response."""
        if (message := self._message) is not None:
            item = body["output"][message.index]
            [part] = item["content"]
            for number, citation in enumerate(self.citations):
                yield self._event(
                    "response.output_text.annotation.added",
                    **message.place,
                    annotation_index=number,
                    annotation=citation,
                )
            whole = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **message.place, **whole)
            yield self._event("response.content_part.done", **message.place, part=part)
            yield self._event("response.output_item.done", output_index=message.index, item=item)
        if self._calls:
            yield from self._end_call(body["output"][self._calls[-1].index])
        yield self._event(f"response.{body['status']}", response=body)

    def _begin_message(self) -> Iterator[bytes]:
        self._message = message = _Message(self._size)
        empty = message.item("in_progress", [])
        yield self._event("response.output_item.added", output_index=message.index, item=empty)
        yield self._event("response.content_part.added", **message.place, part=message.part(()))

    @property
    def _begun(self) -> _Message:
        assert self._message is not None
        return self._message

    def _end_call(self, item: dict[str, Any]) -> Iterator[bytes]:
        """The end of the last call; arguments that were cut off are not done."""
        index = self._calls[-1].index
        if item["status"] == "completed":
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=index,
                name=item["name"],
                arguments=item["arguments"],
            )
        yield self._event("response.output_item.done", output_index=index, item=item)

    def failed(self, message: str) -> bytes:
        """The last event where the answer fails."""
        body = self.body("failed", [], None)
        body["error"] = {"code": "server_error", "message": message}
        return self._event("response.failed", response=body)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return f"event: {kind}\ndata: {text}\n\n".encode()


def new_item_id(prefix: str) -> str:
    """A new identifier of a response or of one of its items."""
    return f"{prefix}_{secrets.token_hex(16)}"


def usage_body(usage: Usage) -> dict[str, Any]:
    """`usage` of a response."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
