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
from grit_jax.serving.service import Service
from grit_jax.serving.structured import JsonConstraint


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation to answer.

    Attributes:
      messages: with string contents (`messages.plain_messages`).
      samplings: the settings of each answer.
      stop: strings that end an answer.
      response_format: of the answers, as in chat; None: free text.
      documents: what is read before the conversation, which it ends; None: nothing.
      whole: nobody reads an answer before it is complete.
    """

    messages: Sequence[dict[str, str]]
    samplings: Sequence[Sampling]
    stop: Sequence[str] = ()
    response_format: dict[str, Any] | None = None
    documents: DocumentRequest | None = None
    whole: bool = True

    async def constraints(self, service: Service) -> Sequence[JsonConstraint | None]:
        """What the form of the answers demands of each.

        Raises:
          ApiError: 400 for a form with a mistake.
        """
        form, count = self.response_format, len(self.samplings)
        if form is None:
            return [None] * count
        return await service.prepare(lambda: service.grammars.constraints(form, count))

    async def prepare(self, service: Service) -> PreparedQuestion | None:
        """Finds the documents and loads their records; None without documents.

        Raises:
          ApiError: 400 for a question that does not fit.
        """
        service.check_ready()
        if self.documents is None:
            return None
        return await self.documents.prepare(service, self.samplings[0].max_new_tokens)

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
            prompt = await service.prepare(
                lambda: service.model.prompt_ids([list(self.messages)])[0]
            )
            records, cached = (), 0
        requests = [
            GenerateRequest(
                prompt, records, sampling, name="messages", user=user, constraint=constraint
            )
            for sampling, constraint in zip(self.samplings, constraints, strict=True)
        ]
        return start_all(service, requests, self.stop, whole=self.whole, cached=cached)
