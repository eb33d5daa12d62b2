"""/tokenize, /detokenize, /tokenizer_info, as lm-eval's remote tokenizer asks them."""

from __future__ import annotations

import pytest


def test_texts_and_conversations(server, tiny_model):
    tokenizer, text = tiny_model.tokenizer, "Amber river, stone!"
    bare = server.post("/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == tokenizer.encode(text) and bare["count"] == len(bare["tokens"])
    assert bare["max_model_len"] == 256
    whole = server.post("/tokenize", model="tiny", prompt=text, return_token_strs=True)
    assert whole["tokens"] == [tokenizer.bos_id, *bare["tokens"]]
    assert whole["token_strs"][0] == "<s>" and len(whole["token_strs"]) == whole["count"]
    assert server.post("/detokenize", tokens=whole["tokens"]) == {"prompt": "<s>" + text}
    messages = [{"role": "user", "content": text}]
    chat = server.post("/tokenize", messages=messages)
    assert chat["tokens"] == tiny_model.prompt_ids([messages])[0]


def test_what_a_client_learns_of_the_tokenizer(server):
    status, info, _ = server.send("/tokenizer_info")
    assert status == 200 and (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert "<|assistant|>" in info["chat_template"]


@pytest.mark.parametrize(
    "path, body, words",
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": []}, "either prompt or messages"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "does not exist"),
        ("/detokenize", {"tokens": [10**6]}, "outside the vocabulary"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {}, "tokens: this field is required"),
    ],
)
def test_a_bad_request_is_refused(server, path, body, words):
    status, error = server.error(path, **body)
    assert status in (400, 404) and words in error["message"]
