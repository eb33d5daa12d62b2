"""Reranking in an engine: equal to a runner of its own, among other requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import Adjustments
from grit_jax.inference.engine import EngineLimits
from grit_jax.inference.fair_queue import QueueFull
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.engine_judge import EngineJudge
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.rerank import relevance, relevance_prompts

QUERY = "Which river is quiet?"


@pytest.fixture(scope="module")
def generator(tiny_model):
    return RagGenerator(tiny_model)


@pytest.fixture(scope="module")
def prompts(generator, sentences):
    texts = sentences[:6]
    return relevance_prompts(QUERY, texts, generator.records(texts))


@pytest.fixture(scope="module")
def engine(tiny_model):
    limits = EngineLimits(waiting=2)
    with tiny_model.engine(2, 256, limits, adjustable=True) as engine:
        yield engine


def test_scores_are_those_of_a_runner_of_its_own(tiny_model, engine, generator, prompts):
    """More candidates than slots and than may wait, while another answer is under way."""
    other = engine.submit(
        GenerateRequest(tiny_model.prompt_ids("Rain?")[0], (), Sampling(30, ignore_eos=True))
    )
    scores = EngineJudge(engine).relevance(generator, prompts, "somebody")
    np.testing.assert_allclose(scores, relevance(generator, prompts), atol=1e-5)
    assert len(set(scores.round(6))) == len(scores) and len(other.result(60).tokens) == 30
    assert engine.wait_until_idle(60) and engine.stats().leaks == 0
    assert len(EngineJudge(engine).relevance(generator, [])) == 0


def test_a_full_queue(engine, generator, prompts, monkeypatch):
    """It waits for its own candidates, and is refused where it has none under way."""
    submit, refuse = engine.submit, iter([False, True, False, False, True, False] + [False] * 9)

    def full(request):
        if next(refuse):
            raise QueueFull("full")
        return submit(request)

    monkeypatch.setattr(engine, "submit", full)
    scores = EngineJudge(engine).relevance(generator, prompts)
    np.testing.assert_allclose(scores, relevance(generator, prompts), atol=1e-5)
    refuse = iter([True])
    with pytest.raises(QueueFull):
        EngineJudge(engine).relevance(generator, prompts)


def test_a_candidate_that_fails_ends_the_others(engine, generator, prompts):
    damaged = dataclasses.replace(prompts[0].records[0], v=prompts[0].records[0].v * np.nan)
    bad = dataclasses.replace(prompts[0], records=(damaged,))
    with pytest.raises(GritError, match="not finite"):
        EngineJudge(engine).relevance(generator, [bad, *prompts])
    assert engine.wait_until_idle(60)


def test_labels_need_logprobs_and_are_few():
    for labels, logprobs in (((1, 2, 3), True), ((1, 2), False), ((-1,), True)):
        with pytest.raises(GritError, match="labels"):
            Adjustments(logprobs=logprobs, labels=labels)
