"""Log-probabilities of answers and prompts against the log-softmax of whole forward passes."""

from __future__ import annotations

import numpy as np

from grit_jax.inference.adjustments import Adjustments
from grit_jax.inference.logprobs import TOP
from grit_jax.inference.requests import GenerateRequest, ScoreRequest
from grit_jax.inference.sampling import Sampling


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))


def check(logprobs, tokens: list[int], expected: np.ndarray) -> None:
    """`expected` `[n V]` are the log-probabilities of the whole vocabulary."""
    rows = np.arange(len(tokens))
    np.testing.assert_allclose(logprobs.chosen, expected[rows, tokens], atol=1e-4)
    np.testing.assert_allclose(logprobs.top, np.sort(expected, axis=1)[:, ::-1][:, :TOP], atol=1e-4)
    np.testing.assert_allclose(
        np.take_along_axis(expected, np.asarray(logprobs.top_ids), 1), logprobs.top, atol=1e-4
    )


def test_of_an_answer(tiny_model):
    """Before temperature and biases; those who do not ask get none."""
    prompt = tiny_model.prompt_ids(["Stone?"])[0]
    biased = Adjustments(logit_bias=((5, 2.0),), logprobs=True)
    asks = Sampling(9, temperature=0.7, seed=3, ignore_eos=True, adjustments=biased)
    heard: list[tuple[float, int]] = []
    parts: list = []

    def hear(tokens: list[int]) -> None:
        heard.extend(zip(parts[-1].chosen.tolist(), tokens))

    with tiny_model.engine(slots=2, context=128, adjustable=True) as engine:
        beside = engine.submit(GenerateRequest(prompt, (), Sampling(20, ignore_eos=True)))
        request = GenerateRequest(prompt, (), asks, on_tokens=hear, on_logprobs=parts.append)
        answer = engine.submit(request).result(60)
        assert beside.result(60).logprobs is None
    ids = np.asarray([[*prompt, *answer.tokens]])
    expected = log_softmax(np.asarray(tiny_model(ids).logits)[0, len(prompt) - 1 : -1])
    assert len(answer.logprobs) == 9
    check(answer.logprobs, answer.tokens, expected)
    assert heard == list(zip(answer.logprobs.chosen.tolist(), answer.tokens))


def test_of_a_prompt(tiny_model, sentences):
    """Texts packed beside one another, and beside plain scores."""
    texts = [tiny_model.tokenizer.encode(text) for text in sentences[:5]]
    with tiny_model.engine(slots=1, context=128) as engine:
        pending = [engine.submit(ScoreRequest(ids, 1, top=True)) for ids in texts]
        plain = [engine.submit(ScoreRequest(ids, 1)) for ids in texts]
        for ids, each, alone in zip(texts, pending, plain):
            expected = log_softmax(np.asarray(tiny_model(np.asarray([ids])).logits)[0, :-1])
            logprobs = each.result(60)
            check(logprobs, ids[1:], expected)
            np.testing.assert_allclose(alone.result(60), logprobs.chosen, atol=1e-4)
