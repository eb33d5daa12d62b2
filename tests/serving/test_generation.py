"""What chat and completions share."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.serving.errors import ApiError
from grit_jax.serving.generation import Usage, event, samplings_of, token_logprobs
from grit_jax.serving.protocol import CompletionBody


def test_settings_of_several_answers():
    body = CompletionBody(prompt="x", n=3, seed=7, temperature=0.5, top_p=0, logit_bias={"4": 2})
    samplings = samplings_of(body, 9, logprobs=True)
    assert [sampling.seed for sampling in samplings] == [7, 8, 9]
    first = samplings[0]
    assert (first.max_new_tokens, first.temperature) == (9, 0.5) and 0 < first.top_p < 1e-6
    assert first.adjustments.logit_bias == ((4, 2.0),) and first.adjustments.logprobs
    default = samplings_of(CompletionBody(prompt="x"), 9, logprobs=False)[0]
    assert (default.temperature, default.top_p, default.top_k) == (1.0, 1.0, 0)
    assert default.seed != samplings_of(CompletionBody(prompt="x"), 9, logprobs=False)[0].seed


@pytest.mark.parametrize("key", ["river", "-1", "1.5", "\u0661", "9999999999", ""])
def test_biases_are_of_token_ids(key):
    with pytest.raises(ApiError, match="logit_bias"):
        samplings_of(CompletionBody(prompt="x", logit_bias={key: 1.0}), 9, logprobs=False)


def test_no_infinity_in_json(server):
    logprobs = TokenLogprobs(
        np.asarray([-np.inf]), np.asarray([[-0.5, -np.inf]]), np.asarray([[5, 6]])
    )
    [token] = token_logprobs(server.service, [7], logprobs, 2)
    assert token["logprob"] == -9999.0 and token["top_logprobs"][1]["logprob"] == -9999.0
    assert json.loads(event({"a": [token]})[6:])["a"] == [token]


def test_usage():
    usage = Usage(5, 3, 2).body()
    assert usage["total_tokens"] == 8 and usage["prompt_tokens_details"]["cached_tokens"] == 2
