"""Answers to a conversation, with or without the documents of a store: what the endpoints for chat
and responses have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.answers import RunningAnswer, start_all
from grit_jax.serving.documents import DocumentRequest
from grit_jax.serving.errors import bad_request
from grit_jax.serving.service import Service
from grit_jax.serving.structured import JsonConstraint
from grit_jax.serving.tool_documents import prepare_with_tools
from grit_jax.serving.tools import ToolUse


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation to answer.

    Attributes:
      messages: with string contents (`messages.plain_messages`).
      samplings: the settings of each answer.
      stop: strings that end an answer.
      response_format: of the answers, as in chat; None: free text.
      documents: what is read before the conversation, which it ends; None: nothing.
      tools: that the answers may call, or called before.
      whole: nobody reads an answer before it is complete.
      param: the field of the request that has the conversation, for errors.
    """

    messages: Sequence[dict[str, Any]]
    samplings: Sequence[Sampling]
    stop: Sequence[str] = ()
    response_format: dict[str, Any] | None = None
    documents: DocumentRequest | None = None
    tools: ToolUse | None = None
    whole: bool = True
    param: str = "messages"

    async def constraints(self, service: Service) -> Sequence[JsonConstraint | None]:
        """What the form of the answers demands of each.

        Raises:
          ApiError: 400 for a form with a mistake.
        """
        form, count, tools = self.response_format, len(self.samplings), self.tools
        grammar = tools.grammar(service.model) if tools is not None else None
        if grammar is not None:
            constrain = service.grammars.lark_constraints
            return await service.prepare(lambda: constrain(grammar, count, "tools"))
        if form is None:
            return [None] * count
        return await service.prepare(lambda: service.grammars.constraints(form, count))

    async def prepare(self, service: Service, user: str = "") -> PreparedQuestion | None:
        """Finds the documents and loads their records; None without documents.

        Raises:
          ApiError: 400 for a question that does not fit.
        """
        service.check_ready()
        if self.documents is None:
            return None
        most = self.samplings[0].max_new_tokens
        if self.tools is None:
            return await self.documents.prepare(service, most, user)
        return await prepare_with_tools(
            service, self.documents, self.messages, self.tools.shown, most, user
        )

    async def start(
        self,
        service: Service,
        user: str,
        prepared: PreparedQuestion | None,
        constraints: Sequence[JsonConstraint | None],
    ) -> list[RunningAnswer]:
        """Starts an answer for each of the samplings.

        Raises:
          ApiError: the engine does not take one of them.
        """
        if prepared is not None:
            prompt, records, cached = prepared.ids, prepared.records, prepared.cached_tokens
        else:
            prompt = await service.prepare(lambda: self._prompt(service))
            records, cached = (), 0
        requests = [
            GenerateRequest(
                prompt, records, sampling, name="messages", user=user, constraint=constraint
            )
            for sampling, constraint in zip(self.samplings, constraints, strict=True)
        ]
        kept = self.tools.kept(service.model) if self.tools is not None else None
        return start_all(service, requests, self.stop, whole=self.whole, cached=cached, kept=kept)

    def _prompt(self, service: Service) -> list[int]:
        """Token ids of the conversation."""
        template, messages = service.model.template, list(self.messages)
        if self.tools is None or template is None:
            return service.model.prompt_ids([messages])[0]
        if messages[-1]["role"] == "assistant":
            raise bad_request(
                f"{self.param}: the last message is the assistant's, so there is nothing to answer",
                self.param,
            )
        return template.prompt_ids(messages, tools=self.tools.shown)
