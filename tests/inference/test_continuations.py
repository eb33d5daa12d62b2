"""Scores of continuations: equal to what the logits of a plain pass say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.continuations import score_continuations
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.inference.requests import ScoreRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.types import AttentionMode


def expected_score(model, context, continuation):
    """From the logits of one forward pass, in float64."""
    ids = [*context, *continuation]
    logits = np.asarray(model(np.asarray([ids])).logits)[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(len(context) - 1, len(ids) - 1)
    greedy = (logprobs[places].argmax(1) == continuation).all()
    return logprobs[places, continuation].sum(), bool(greedy)


@pytest.fixture(scope="module")
def pairs(tiny_model, sentences):
    """Contexts and continuations of many lengths; four choices of one token after one context; and
    what greedy decoding writes, whole and with its last token changed."""
    encode = tiny_model.tokenizer.encode
    pairs = [(encode(sentences[i]), encode(sentences[i + 1])) for i in range(6)]
    pairs += [(encode(sentences[7]), [token]) for token in (5, 6, 7, 8)]
    context = encode(sentences[8])
    greedy = tiny_model.generate_ids([context], sampling=Sampling(3, ignore_eos=True)).tokens[0]
    return [*pairs, (context, greedy), (context, [*greedy[:-1], greedy[-1] ^ 1]), ([1], [5])]


def test_equal_to_a_plain_pass(tiny_model, pairs):
    done = []
    scores = score_continuations(tiny_model, pairs, on_scored=done.append)
    expected = [expected_score(tiny_model, *pair) for pair in pairs]
    np.testing.assert_allclose(scores.logprobs, [logprob for logprob, _ in expected], atol=1e-4)
    assert scores.greedy.tolist() == [greedy for _, greedy in expected]
    assert scores.greedy[-3] and not scores.greedy[-2]
    assert sum(done) == len(pairs)


def test_no_pairs(tiny_model):
    assert len(score_continuations(tiny_model, []).logprobs) == 0


def test_prefix_language_model(tiny_model, pairs):
    """The context is read bidirectionally, as the engine reads it."""
    prefix = GritLM(
        tiny_model.config,
        tiny_model.params,
        tiny_model.tokenizer,
        tiny_model.chat,
        ModelOptions(generation_mode=AttentionMode.PREFIX),
    )
    longer = [pair for pair in pairs if len(pair[1]) > 1][:3]
    with prefix.engine(slots=1, context=64) as engine:
        requests = [ScoreRequest([*first, *second], len(first)) for first, second in longer]
        expected = [engine.submit(r).result().sum() for r in requests]
    found = score_continuations(prefix, longer).logprobs
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - score_continuations(tiny_model, longer).logprobs).max() > 1e-3
    # A continuation of one token: no token of the context is causal.
    context, (first, *_) = longer[0]
    whole = score_continuations(prefix, [(context, [first, 5])]).logprobs[0]
    rest = score_continuations(prefix, [(context, [first])]).logprobs[0]
    with prefix.engine(slots=1, context=64) as engine:
        both = engine.submit(ScoreRequest([*context, first, 5], len(context))).result()
    np.testing.assert_allclose([rest, whole], [both[0], both.sum()], atol=1e-4)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [5]), "pair 0: the context has no tokens"),
        (([5], []), "pair 0: the continuation has no tokens"),
        (([5], [10**6]), "pair 0 has a token id outside the vocabulary"),
        (([5] * 100_000, [5]), "pair 0 has 100000 tokens, but this model's context is"),
    ],
)
def test_what_cannot_be_scored(tiny_model, pair, message):
    with pytest.raises(GritError, match=message):
        score_continuations(tiny_model, [pair])


def test_not_finite(tiny_model):
    params = dict(tiny_model.params)
    name = "embed" if "embed" in params else next(iter(params))
    params[name] = params[name] * np.nan
    spoilt = GritLM(tiny_model.config, params, tiny_model.tokenizer, tiny_model.chat)
    spoilt.config = dataclasses.replace(spoilt.config)
    with pytest.raises(GritError, match="a continuation is not finite"):
        score_continuations(spoilt, [([5], [6])])
