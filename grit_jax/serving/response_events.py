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
class ResponseForm:
    """The form of one response.

    Attributes:
      name: of the model.
      request: what was asked.
      search: the search that was made; None: none.
      citations: annotations of the answer.
      extra: our own fields, `grit`.
    """

    name: str
    request: ResponseBody
    search: SearchCall | None = None
    citations: Sequence[dict[str, Any]] = ()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id, self.message_id = new_item_id("resp"), new_item_id("msg")
        self.created = int(time.time())
        self._number = 0

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

    def output(
        self, text: str, logprobs: list[dict[str, Any]], status: str
    ) -> list[dict[str, Any]]:
        """The output items of a response that has ended."""
        message = self._message(status, [self._part(text, logprobs, self.citations)])
        call = self.search
        return [message] if call is None else [call.item("completed", self._shows_results), message]

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    @staticmethod
    def _part(
        text: str, logprobs: list[dict[str, Any]], annotations: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": text,
            "annotations": list(annotations),
            "logprobs": logprobs,
        }

    # ---- events ----------------------------------------------------------------------------------

    def head(self) -> Iterator[bytes]:
        """What precedes the text: the response begins, the search is made, the message begins."""
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
        empty = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=self._index, item=empty)
        part = self._part("", [], ())
        yield self._event("response.content_part.added", **self._place, part=part)

    def delta(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        """More of the text."""
        return self._event(
            "response.output_text.delta", **self._place, delta=text, logprobs=logprobs
        )

    def tail(self, body: Event) -> Iterator[bytes]:
        """What follows the text: its citations, and the end of message and response."""
        message = body["output"][-1]
        [part] = message["content"]
        for number, citation in enumerate(self.citations):
            yield self._event(
                "response.output_text.annotation.added",
                **self._place,
                annotation_index=number,
                annotation=citation,
            )
        whole = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place, **whole)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=message)
        yield self._event(f"response.{body['status']}", response=body)

    def failed(self, message: str) -> bytes:
        """The last event where the answer fails."""
        body = self.body("failed", [], None)
        body["error"] = {"code": "server_error", "message": message}
        return self._event("response.failed", response=body)

    @property
    def _index(self) -> int:
        return 0 if self.search is None else 1

    @property
    def _place(self) -> dict[str, Any]:
        """Where the text is."""
        return {"item_id": self.message_id, "output_index": self._index, "content_index": 0}

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
