"""Chat completions: equal to `GritLM.generate`, alone and in company, whole and streamed."""

from __future__ import annotations

import concurrent.futures

import pytest

PROMPTS = ["Amber river?", "Which stone?", "Paper, quiet engine.", "Name the harbor!"]


def ask(server, content, **fields):
    messages = [{"role": "user", "content": content}]
    return server.post(
        "/v1/chat/completions",
        model="tiny",
        messages=messages,
        **{"temperature": 0, "max_tokens": 12, **fields},
    )


def text(reply) -> str:
    return reply["choices"][0]["message"]["content"]


def test_answers_are_those_of_generate(server, tiny_model):
    expected = tiny_model.generate(PROMPTS, max_new_tokens=12)
    alone = [ask(server, prompt) for prompt in PROMPTS]
    assert [text(reply) for reply in alone] == expected
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        embedding = pool.submit(server.post, "/v1/embeddings", model="tiny", input=PROMPTS)
        together = list(pool.map(lambda prompt: ask(server, prompt), PROMPTS * 4))
        embedding.result()
    assert [text(reply) for reply in together] == expected * 4
    ids = tiny_model.prompt_ids(PROMPTS)
    for prompt, reply in zip(ids, alone):
        usage = reply["usage"]
        assert usage["prompt_tokens"] == len(prompt)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert reply["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_official_client(openai_client, tiny_model):
    """Messages of all roles, parts of content, sampling with a seed."""
    chat = openai_client.chat.completions
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Amber river?"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And the stone?"},
    ]
    plain = [
        m | {"content": "Amber river?"} if isinstance(m["content"], list) else m for m in messages
    ]
    reply = chat.create(
        model="tiny", messages=messages, temperature=0.8, top_p=0.9, seed=5, max_completion_tokens=9
    )
    expected = tiny_model.generate([plain], max_new_tokens=9, temperature=0.8, top_p=0.9, seed=5)
    assert reply.choices[0].message.content == expected[0]
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    several = chat.create(
        model="tiny", messages=messages, n=3, seed=5, temperature=0.8, max_tokens=9
    )
    expected = [
        tiny_model.generate([plain], max_new_tokens=9, temperature=0.8, seed=5 + i)[0]
        for i in range(3)
    ]
    assert [choice.message.content for choice in several.choices] == expected
    assert several.usage.completion_tokens >= len(set(expected))


def test_a_stream_is_the_whole_answer_in_parts(openai_client, server):
    chat = openai_client.chat.completions
    messages = [{"role": "user", "content": PROMPTS[1]}]
    fields = {
        "model": "tiny",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 120,
        "extra_body": {"ignore_eos": True},
    }
    whole = chat.create(**fields, n=2)
    chunks = list(chat.create(**fields, n=2, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert last.choices == [] and last.usage == whole.usage
    for number, choice in enumerate(whole.choices):
        own = [c.choices[0] for c in parts if c.choices[0].index == number]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        assert len(own) >= 4  # as it grows
    raw = server.send(
        "/v1/chat/completions",
        {k: v for k, v in fields.items() if k != "extra_body"} | {"stream": True},
    )
    assert raw[1].endswith("data: [DONE]\n\n") and raw[2]["content-type"].startswith("text/event-")
    assert '"usage"' not in raw[1]


def test_a_stop_string_ends_the_answer(server):
    """It is no part of the text, wherever tokens divide it, and the slot is free at once."""
    whole = text(ask(server, PROMPTS[0], max_tokens=60))
    for start in (3, 10, 17):
        stop = whole[start : start + 5]
        reply = ask(server, PROMPTS[0], max_tokens=60, stop=["\u2603never", stop])
        assert text(reply) == whole[: whole.index(stop)]
        assert reply["choices"][0]["finish_reason"] == "stop"
    raw = server.send(
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": PROMPTS[0]}],
            "temperature": 0,
            "max_tokens": 60,
            "stop": stop,
            "stream": True,
        },
    )[1]
    assert stop not in raw and '"finish_reason":"stop"' in raw


def test_logprobs_penalties_and_biases(openai_client, server, tiny_model):
    chat = openai_client.chat.completions
    messages = [{"role": "user", "content": PROMPTS[2]}]
    fields = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 6}
    reply = chat.create(**fields, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert all(item.top_logprobs[0].logprob == item.logprob for item in content)  # greedy
    assert all(len(item.top_logprobs) == 3 for item in content)
    stream = chat.create(**fields, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        item for c in stream if c.choices[0].logprobs for item in c.choices[0].logprobs.content
    ]
    assert [item.logprob for item in streamed] == [item.logprob for item in content]
    token = tiny_model.tokenizer.encode("river")[0]
    biased = chat.create(**fields, logit_bias={str(token): 100})
    assert biased.choices[0].message.content == tiny_model.tokenizer.decode([token] * 6)
    other = chat.create(
        **fields, logit_bias={str(token): 60}, frequency_penalty=2, presence_penalty=2
    )
    assert other.choices[0].message.content.startswith(tiny_model.tokenizer.decode([token]))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"messages": []}, "messages: the list is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "reads text only",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "expected 'user'"),
        ({"messages": "x"}, "messages: Input should be a valid"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "a slot holds 256"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n: Input should be greater"),
        ({"n": 9}, "n: 9 answers, and a request may have 8"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1"),
        ({"max_tokens": 10**6}, "do not fit this model's context"),
        ({"stop": ""}, "stop: must not be empty"),
        ({"stop": ["a"] * 17}, "stop: 17 strings"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"river": 1}}, "logit_bias: expected token ids"),
        ({"logit_bias": {"99999": 1}}, "logit_bias has token 99999"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"top_logprobs": 2}, "only with logprobs"),
        ({"stream_options": {"include_usage": True}}, "only with stream"),
        ({"tools": [{"type": "function"}]}, "tools[0]: expected {'type': 'function'"),
        ({"temprature": 1}, "temprature: unknown field, did you mean 'temperature'?"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(server, change, words):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    status, error = server.error("/v1/chat/completions", **(body | change))
    assert status == 400 and error["type"] == "invalid_request_error"
    assert words in error["message"]
