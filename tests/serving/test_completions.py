"""Completions: prompts as text and as ids, echo with log-probabilities, streams."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.inference.sampling import Sampling


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_prompts_as_text_and_as_ids(openai_client, tiny_model, sentences):
    create = openai_client.completions.create
    tokenizer = tiny_model.tokenizer
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in sentences[:2]]
    expected = tiny_model.generate_ids(prompts, sampling=Sampling(7)).tokens
    texts = [tokenizer.decode(tokens) for tokens in expected]
    for prompt in (sentences[:2], prompts):
        reply = create(model="tiny", prompt=prompt, max_tokens=7, temperature=0)
        assert [choice.text for choice in reply.choices] == texts
    assert reply.usage.prompt_tokens == sum(map(len, prompts))
    assert reply.usage.completion_tokens == sum(map(len, expected))
    chunks = list(
        create(
            model="tiny",
            prompt=prompts,
            max_tokens=7,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for number, text in enumerate(texts):
        parts = [c.choices[0].text for c in chunks[:-1] if c.choices[0].index == number]
        assert "".join(parts) == text
    assert chunks[-1].usage == reply.usage


@pytest.mark.parametrize("most", [1, 0])
def test_echo_with_logprobs_as_lm_eval_sends_it(server, tiny_model, sentences, most):
    """The numbers that lm-eval reads: log-probabilities of a continuation given its context, and
    whether it is greedy."""
    prompts = [tiny_model.tokenizer.encode(text) for text in sentences[2:5]]
    greedy = tiny_model.generate_ids([prompts[0]], sampling=Sampling(4, ignore_eos=True)).tokens[0]
    prompts.append([*prompts[0], *greedy])
    reply = server.post(
        "/v1/completions",
        model="tiny",
        prompt=prompts,
        temperature=0,
        max_tokens=most,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    for prompt, choice in zip(prompts, reply["choices"]):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(prompt) + most
        expected = log_softmax(np.asarray(tiny_model(np.asarray([prompt])).logits)[0, :-1])
        values = logprobs["token_logprobs"][: len(prompt)]
        assert values[0] is None and logprobs["top_logprobs"][0] is None
        rows = np.arange(len(prompt) - 1)
        np.testing.assert_allclose(values[1:], expected[rows, prompt[1:]], atol=1e-4)
        tops = logprobs["top_logprobs"][1 : len(prompt)]
        np.testing.assert_allclose([max(top.values()) for top in tops], expected.max(1), atol=1e-4)
        is_greedy = [value == max(top.values()) for value, top in zip(values[1:], tops)]
        assert is_greedy == (expected.argmax(1) == prompt[1:]).tolist()
        assert choice["text"].startswith(tiny_model.tokenizer.decode(prompt))
    assert all(is_greedy[-4:])  # of the last prompt
    assert reply["usage"]["completion_tokens"] == most * len(prompts)


def test_a_special_token_in_a_prompt_is_text(server, tiny_model):
    ids = server.post("/tokenize", prompt="</s>", add_special_tokens=False)["tokens"]
    assert tiny_model.tokenizer.eos_id not in ids
    reply = server.post("/v1/completions", prompt="a</s>", max_tokens=0, echo=True)
    assert reply["choices"][0]["text"] == "a</s>"
    assert reply["usage"] == reply["usage"] | {
        "prompt_tokens": 2 + len(ids),
        "completion_tokens": 0,
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": []}, "prompt: the list is empty"),
        ({"prompt": [[]]}, "prompt[0]: must not be empty"),
        ({"prompt": [[10**6]]}, "outside the vocabulary"),
        ({"prompt": ["a", [1]]}, "prompt: "),
        ({"prompt": None}, "prompt: "),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix: this server does not have it"),
        ({"prompt": ["a"] * 5, "n": 2}, "10 answers, and a request may have 8"),
        ({"prompt": "word " * 2000}, "a slot holds 256"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(server, change, words):
    status, error = server.error("/v1/completions", **({"prompt": "x", "max_tokens": 2} | change))
    assert status == 400 and words in error["message"], error
