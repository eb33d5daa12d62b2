"""Answers under way in an event loop."""

from __future__ import annotations

import asyncio

import pytest

from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.serving.answers import RunningAnswer, merged, start_all
from grit_jax.serving.errors import ApiError


def requests_of(model, prompts, tokens: int) -> list[GenerateRequest]:
    sampling = Sampling(tokens, ignore_eos=True)
    return [GenerateRequest(ids, (), sampling) for ids in model.prompt_ids(prompts)]


def test_whole_and_in_parts(server, tiny_model):
    requests = requests_of(tiny_model, ["Amber?", "Stone?", "Paper?"], 30)
    expected = [
        tiny_model.tokenizer.decode(tokens)
        for tokens in tiny_model.generate_ids(
            [r.prompt for r in requests], sampling=requests[0].sampling
        ).tokens
    ]

    async def run() -> tuple[list[str], list[str]]:
        answers = start_all(server.service, requests, (), whole=True)
        whole = [(await answer.complete()).text for answer in answers]
        texts = [""] * len(requests)
        async for number, delta in merged(start_all(server.service, requests, (), whole=False)):
            texts[number] += delta.text
        return whole, texts

    assert asyncio.run(run()) == (expected, expected)


def test_a_reader_that_stops_cancels(server, tiny_model):
    [request] = requests_of(tiny_model, ["Amber?"], 200)

    async def run() -> RunningAnswer:
        answer = RunningAnswer(server.service, request, (), whole=False)
        deltas = answer.deltas()
        await anext(deltas)
        await deltas.aclose()
        return answer

    answer = asyncio.run(run())
    server.wait_until_idle()
    assert answer.pending.cancelled and 0 < answer.generated < 200


def test_all_or_none_are_started(server, tiny_model):
    good = requests_of(tiny_model, ["Amber?"], 200)
    bad = GenerateRequest([10**6])

    async def run() -> None:
        start_all(server.service, [*good, *good, bad], (), whole=True)

    with pytest.raises(ApiError, match="vocabulary"):
        asyncio.run(run())
    server.wait_until_idle()
    assert server.service.engine.stats().slots_in_use == 0
