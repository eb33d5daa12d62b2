"""Answers of chat over the documents of a store: `store`, `mode`, `k`, `search`, `where`, `rerank`
and `instruction`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from grit_jax.errors import GritError
from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.serving.answers import RunningAnswer
from grit_jax.serving.errors import bad_request
from grit_jax.serving.protocol import ChatBody
from grit_jax.serving.request_trace import RequestTrace, current
from grit_jax.serving.service import Service
from grit_jax.serving.stores import Store
from grit_jax.serving.vector_stores import retrieval_of
from grit_jax.text.chat import turns_of
from grit_jax.text.rag_layouts import MODES

SPANS = {"load": "records"}  # names of stages that say more in a trace
FIELDS = ("mode", "k", "search", "where", "rerank", "instruction")


@dataclasses.dataclass(frozen=True)
class DocumentRequest:
    """A question over a store; the fields are those of `rag.prepared.Preparer.prepare`."""

    store: Store
    question: str
    mode: str
    k: int
    retrieval: Retrieval
    instruction: str = ""
    turns: tuple[str, ...] = ()

    async def prepare(self, service: Service, new_tokens: int, user: str = "") -> PreparedQuestion:
        """Finds the documents and loads their records.

        Args:
          user: who asks.

        Raises:
          ApiError: 400 for a question that does not fit, or a store of another model.
        """
        service.check_store(self.store, service.name)
        began = time.monotonic()
        prepared = await service.prepare_from_store(
            lambda: self.store.current().prepare(
                self.question,
                self.mode,
                self.k,
                retrieval=self.retrieval,
                instruction=self.instruction,
                turns=self.turns,
                new_tokens=new_tokens,
                user=user,
            )
        )
        if (trace := current()) is not None:
            self._note(trace, prepared, began)
        warnings = [self.store.named(warning) for warning in prepared.warnings]
        return dataclasses.replace(prepared, warnings=warnings)

    def _note(self, trace: RequestTrace, prepared: PreparedQuestion, began: float) -> None:
        """Notes the documents and the stages before the answer, which follow each other."""
        seconds = {SPANS.get(name, name): value for name, value in prepared.timings.items()}
        trace.consecutive(began, seconds)
        trace.attributes |= {
            "grit.store": self.store.name,
            "grit.mode": prepared.mode,
            "grit.cache": prepared.cache,
            "grit.documents": [document["id"] for document in prepared.documents],
        }


def document_request(
    service: Service, body: ChatBody, messages: Sequence[dict[str, str]], *, tools: bool = False
) -> DocumentRequest | None:
    """What a chat request asks of a store; None: it names none.

    Args:
      tools: as of `question_of`.

    Raises:
      ApiError: 400 for a field without a store, an unknown layout, or a conversation without a
        question at its end; 404 for an unknown store.
    """
    if not body.has_documents:
        for name in FIELDS:
            if getattr(body, name) is not None:
                raise bad_request(f"{name}: only with 'store', the name of a store", name)
        return None
    store = service.stores.get(body.store, "store")
    mode = body.mode or "auto"
    if mode not in (*MODES, "auto"):
        raise bad_request(
            f"mode: expected one of {', '.join((*MODES, 'auto'))}, got {mode!r:.40}", "mode"
        )
    question, turns = question_of(messages, tools=tools)
    retrieval = retrieval_of(body.search, body.where, None, body.rerank or 0)
    return DocumentRequest(
        store, question, mode, body.k or 1, retrieval, body.instruction or "", turns
    )


def question_of(
    messages: Sequence[dict[str, str]], param: str = "messages", *, tools: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The question that a conversation ends with, and its turns; no turns where the question is all
    of it.

    Args:
      param: the field of the request, for errors.
      tools: the conversation is rendered by the chat template (`tool_documents.py`): the question
        is the last message of the user, and calls of functions may follow it.

    Raises:
      ApiError: 400 for a conversation that does not end with a message of the user, or whose roles
        do not alternate.
    """
    if tools:
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if not asked:
            raise bad_request(f"{param}: there is no message of the user to search for", param)
        return asked[-1], ()
    if not messages or messages[-1]["role"] != "user":
        raise bad_request(
            f"{param}: a conversation over documents must end with a message of the user", param
        )
    try:
        turns = tuple(turns_of(messages))
    except GritError as error:
        raise bad_request(str(error), param) from None
    return messages[-1]["content"], turns if len(messages) > 1 else ()


def shown_documents(prepared: PreparedQuestion) -> dict[str, Any]:
    """What a reply says of the documents, under `grit`: as `grit ask --json`, and their texts."""
    return {
        "documents": [
            {**document, "text": text}
            for document, text in zip(prepared.documents, prepared.texts, strict=True)
        ],
        "mode": prepared.mode,
        "cache": prepared.cache,
        "warnings": prepared.warnings,
    }


def shown_timings(prepared: PreparedQuestion, answers: Sequence[RunningAnswer]) -> dict[str, float]:
    """Seconds by stage, with the names of `grit ask --json` and `queue`, the wait for a slot; of
    several answers those of the one that took longest."""
    longest = max((answer.seconds for answer in answers), key=lambda seconds: sum(seconds.values()))
    stages = {**prepared.timings, **longest}
    stages["load"] = prepared.timings["load"] + longest["load"]
    stages["total"] = sum(stages.values())
    return {name: round(seconds, 6) for name, seconds in stages.items()}
