"""What chat and responses have in common: constraints, and answers that start together."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from grit_jax.inference.sampling import Sampling
from grit_jax.serving.conversations import Conversation
from grit_jax.serving.errors import ApiError

MESSAGES = [{"role": "user", "content": "Which river?"}]


def test_answers_of_several_samplings(server, tiny_model):
    samplings = [Sampling(5), Sampling(3)]
    conversation = Conversation(MESSAGES, samplings)

    async def answers():
        constraints = await conversation.constraints(server.service)
        assert constraints == [None, None]
        assert await conversation.prepare(server.service) is None
        started = await conversation.start(server.service, "somebody", None, constraints)
        return [await answer.complete() for answer in started]

    texts = [delta.text for delta in asyncio.run(answers())]
    expected = [tiny_model.generate(["Which river?"], max_new_tokens=n)[0] for n in (5, 3)]
    assert [text.strip() for text in texts] == expected


def test_a_form_with_a_mistake(server):
    conversation = Conversation(MESSAGES, [Sampling(5)], response_format={"type": "song"})
    with pytest.raises(ApiError, match="response_format.type: expected text"):
        asyncio.run(conversation.constraints(server.service))
    plain = dataclasses.replace(conversation, response_format={"type": "json_object"})
    [constraint] = asyncio.run(plain.constraints(server.service))
    assert constraint is not None and constraint.allowed().any()
