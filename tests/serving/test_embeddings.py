"""Embeddings: equal to `GritLM.encode`, alone and in company, in all forms of an input."""

from __future__ import annotations

import base64
import concurrent.futures

import numpy as np
import pytest

from grit_jax.serving.embeddings import _formatted
from grit_jax.serving.protocol import EmbeddingBody


def vectors(reply) -> np.ndarray:
    assert [item["index"] for item in reply["data"]] == list(range(len(reply["data"])))
    return np.asarray([item["embedding"] for item in reply["data"]], np.float32)


def test_vectors_are_those_of_encode(server, tiny_model, sentences):
    """From many clients at once, beside an answer; in batches across requests."""
    texts = sentences[:24]
    expected = tiny_model.encode(texts)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answer = pool.submit(
            server.post,
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "x"}],
            max_tokens=60,
        )
        embed = lambda text: vectors(server.post("/v1/embeddings", model="tiny", input=text))
        parts = list(pool.map(embed, texts))
        answer.result()
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)
    np.testing.assert_allclose(embed(texts), expected, atol=1e-5)


def test_the_official_client(openai_client, tiny_model, sentences):
    """It asks for base64 by itself."""
    create = openai_client.embeddings.create
    reply = create(model="tiny", input=sentences[:3])
    np.testing.assert_allclose(
        [item.embedding for item in reply.data], tiny_model.encode(sentences[:3]), atol=1e-5
    )
    tokens = tiny_model.encoder.format(sentences[:3]).ids
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, tokens))
    floats = create(model="tiny", input=sentences[0], encoding_format="float")
    np.testing.assert_allclose(floats.data[0].embedding, reply.data[0].embedding, atol=1e-5)
    short = create(model="tiny", input=sentences[0], dimensions=8).data[0].embedding
    cut = tiny_model.encode(sentences[0])[0, :8]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut), atol=1e-5)


def test_base64_is_little_endian_float32(server, tiny_model, sentences):
    reply = server.post("/v1/embeddings", input=sentences[0], encoding_format="base64")
    raw = base64.b64decode(reply["data"][0]["embedding"])
    assert len(raw) == 4 * tiny_model.embedding_width
    np.testing.assert_allclose(
        np.frombuffer(raw, "<f4"), tiny_model.encode(sentences[0])[0], atol=1e-5
    )


def test_instructions_token_ids_and_truncation(server, tiny_model, sentences):
    text, embed = sentences[0], lambda **body: vectors(server.post("/v1/embeddings", **body))
    close = lambda got, expected: np.testing.assert_allclose(got, expected, atol=1e-5)
    close(embed(input=text, instruction="Sort"), tiny_model.encode(text, "Sort"))
    close(embed(input=text, input_type="query"), tiny_model.encode(text, "Find it"))
    close(embed(input=text, input_type="document"), tiny_model.encode(text))
    close(embed(input=text, input_type="query", instruction=""), tiny_model.encode(text))
    ids = [tiny_model.tokenizer.encode(each) for each in sentences[:2]]
    close(embed(input=ids[0]), tiny_model.encode(text))
    close(embed(input=ids), tiny_model.encode(sentences[:2]))
    long = " ".join(sentences[:5])
    with pytest.warns(UserWarning, match="cut"):
        close(embed(input=long, truncate_prompt_tokens=20), tiny_model.encode(long, "", 20))
    close(embed(input=long, truncate_prompt_tokens=-1), tiny_model.encode(long, "", 1000))
    body = EmbeddingBody(input="word " * 9000, truncate_prompt_tokens=-1)
    formatted = _formatted(server.service, body, [body.input], "")
    assert len(formatted.ids[0]) == tiny_model.config.context_length


@pytest.mark.parametrize(
    "change, words",
    [
        ({"input": ""}, "input: must not be empty"),
        ({"input": []}, "input: the list is empty"),
        ({"input": ["a", ""]}, "input[1]: must not be empty"),
        ({"input": [[]]}, "input[0]: must not be empty"),
        ({"input": ["a", 1]}, "input: "),
        ({"input": None}, "input: "),
        ({"input": [10**6]}, "token 1000000 is outside the vocabulary"),
        ({"input": [-1]}, "input: "),
        ({"input": ["a"] * 65}, "65 items, and a request may have 64"),
        ({"input": ["word " * 300] * 60}, "tokens, and a request may have 20000"),
        ({"input": "word " * 9000}, "truncate_prompt_tokens: -1"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 10**6}, "dimensions: this model's vectors have"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens: expected"),
        ({"truncate_prompt_tokens": 1}, "nothing is left for a text"),
        ({"input_type": "song"}, "input_type: expected one of"),
        ({"input_type": "document", "instruction": "x"}, "instruction: documents"),
        ({"prompt_name": "x"}, "no prompt 'x'"),
        ({"normalize": False}, "normalize"),
        ({"dimension": 3}, "dimension: unknown field, did you mean 'dimensions'?"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(server, change, words):
    status, error = server.error("/v1/embeddings", **({"input": "x", "model": "tiny"} | change))
    assert status == 400 and words in error["message"], error
