"""Penalties, biases and masks against a loop over the model's own logits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import (
    Adjustments,
    adjustment_rows,
    all_allowed,
    unpacked,
    words,
)
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling

NEW = 10


def expected_tokens(model, prompt: list[int], adjustments: Adjustments) -> list[int]:
    """The same answer, token by token, from whole forward passes."""
    answer: list[int] = []
    for _ in range(NEW):
        ids = np.asarray([[*prompt, *answer]])
        logits = np.asarray(model(ids).logits)[0, -1].astype(np.float64)
        for token in set(answer):
            logits[token] -= adjustments.presence_penalty
            logits[token] -= adjustments.frequency_penalty * answer.count(token)
        for token, bias in adjustments.logit_bias:
            logits[token] += bias
        answer.append(int(logits.argmax()))
    return answer


def greedy(adjustments: Adjustments) -> Sampling:
    return Sampling(NEW, ignore_eos=True, adjustments=adjustments)


def test_answers_follow_penalties_and_biases(tiny_model):
    """Each request its own, in one batch, beside one without; and again in the reused slots."""
    prompt = tiny_model.prompt_ids(["Amber river?"])[0]
    plain = tiny_model.generate_ids([prompt], sampling=greedy(Adjustments())).tokens[0]
    cases = [
        Adjustments(),
        Adjustments(presence_penalty=2.0, logit_bias=((9, 20.0),)),
        Adjustments(frequency_penalty=4.0, logit_bias=((9, 20.0),)),
        Adjustments(presence_penalty=-2.0, frequency_penalty=-2.0),
        Adjustments(logit_bias=((plain[0], -100.0), (7, 3.0))),
        Adjustments(logit_bias=((9, 100.0),)),
    ]
    with tiny_model.engine(slots=4, context=128, adjustable=True) as engine:
        for _ in range(2):
            pending = [engine.submit(GenerateRequest(prompt, (), greedy(case))) for case in cases]
            answers = [each.result(60).tokens for each in pending]
            assert answers == [expected_tokens(tiny_model, prompt, case) for case in cases]
    assert answers[0] == plain and len({tuple(answer) for answer in answers}) > 4
    assert answers[-1] == [9] * NEW
    # The same by `generate_ids`, which opens an adjustable state where one of them needs it.
    same = tiny_model.generate_ids([prompt] * len(cases), sampling=list(map(greedy, cases)))
    assert same.tokens == answers


def test_a_mask_is_packed_bit_by_bit():
    V = 70
    allowed = np.random.default_rng(0).random((2, V)) < 0.5
    packed = np.zeros((2, words(V)), np.uint32)
    for row, token in zip(*np.nonzero(allowed)):
        packed[row, token // 32] |= np.uint32(1) << np.uint32(token % 32)
    assert (np.asarray(unpacked(jnp.asarray(packed), V)) == allowed).all()
    assert np.asarray(unpacked(jnp.asarray(all_allowed(V))[None], V)).all()
    rows = adjustment_rows([Adjustments(logprobs=True)] * 2, V, [packed[0], None])
    logits = np.random.default_rng(1).normal(size=(2, V)).astype(np.float32)
    masked = np.asarray(rows.apply(jnp.asarray(logits)))
    assert (masked[0] == np.where(allowed[0], logits[0], -np.inf)).all()
    assert (masked[1] == logits[1]).all()


def test_bad_adjustments_are_refused(tiny_model):
    for bad, words_ in (
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"logit_bias": ((-1, 0.0),)}, "token id"),
        ({"logit_bias": tuple((i, 0.0) for i in range(301))}, "at most 300"),
    ):
        with pytest.raises(GritError, match=words_):
            Adjustments(**bad)
    request = GenerateRequest([1], (), greedy(Adjustments(presence_penalty=1.0)))
    with (
        tiny_model.engine(slots=1, context=128) as engine,
        pytest.raises(GritError, match="adjustable=True"),
    ):
        engine.submit(request)
    beyond = greedy(Adjustments(logit_bias=((10**6, 1.0),)))
    with pytest.raises(GritError, match="logit_bias has token 1000000"):
        tiny_model.generate_ids([[1]], sampling=beyond)
