"""lm-eval's and mteb's own clients, unmodified, against the port: their numbers are the model's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from live_server import live_server

from grit_jax.inference.sampling import Sampling
from grit_jax.serving.settings import ServeSettings

pytestmark = pytest.mark.peers
CONTEXTS = ["Amber river", "The quiet engine: ", "Stone paper window forest copper"]
CONTINUATIONS = [" lantern orbit", "meadow", " 0123 (yes)!"]


@pytest.fixture(scope="module")
def server(tiny_model):
    settings = ServeSettings("tiny", slots=4, context=512, warm_up=False)
    with live_server(tiny_model, settings) as running:
        yield running


@pytest.fixture(scope="module")
def lm_eval(server):
    pytest.importorskip("tenacity")  # of its extra 'api'
    pytest.importorskip("lm_eval.models")
    from lm_eval.api.registry import get_model

    return get_model


@pytest.fixture(scope="module", params=["token ids", "texts"])
def completions(request, lm_eval, server):
    """`local-completions`, prompts as token ids or as texts, the tokenizer being the server's."""
    return lm_eval("local-completions")(
        base_url=f"{server.url}/v1/completions",
        model="tiny",
        tokenizer_backend="remote",
        tokenized_requests=request.param == "token ids",
        batch_size=2,
        max_length=500,
        max_retries=1,
    )


def instance(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def logprobs_of(model, ids: list[int]) -> np.ndarray:
    """Log-probabilities of all next tokens `[T V]`, from the logits of one forward pass."""
    logits = np.asarray(model(np.asarray([ids])).logits)[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected_score(model, completions, context: str, continuation: str) -> tuple[float, bool]:
    first, second = completions._encode_pair(context, continuation)
    if not completions.tokenized_requests:  # lm-eval sends the text, which begins with a BOS here
        first = [model.tokenizer.bos_id, *first]
    ids = [*first, *second]
    logprobs = logprobs_of(model, ids)
    places = np.arange(len(first) - 1, len(ids) - 1)
    chosen = logprobs[places, ids[len(first) :]]
    return float(chosen.sum()), bool((logprobs[places].argmax(1) == ids[len(first) :]).all())


def test_loglikelihood(completions, tiny_model):
    if not completions.tokenized_requests:
        pytest.skip("lm-eval counts the context's tokens without the BOS that a text gets")
    greedy = tiny_model.generate_ids(
        [tiny_model.tokenizer.encode(CONTEXTS[0])], sampling=Sampling(3, ignore_eos=True)
    ).tokens[0]
    pairs = [
        *zip(CONTEXTS, CONTINUATIONS, strict=True),
        (CONTEXTS[0], tiny_model.tokenizer.decode(greedy)),
    ]
    scores = completions.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    for pair, (score, is_greedy) in zip(pairs, scores, strict=True):
        expected, expected_greedy = expected_score(tiny_model, completions, *pair)
        np.testing.assert_allclose(score, expected, atol=1e-3)
        assert is_greedy == expected_greedy


def test_generate_until(completions, tiny_model):
    """Equal to greedy generation, up to a string where it is to end."""
    tokenizer = tiny_model.tokenizer
    prompts = [tokenizer.encode(text) for text in CONTEXTS]
    if not completions.tokenized_requests:
        prompts = [[tokenizer.bos_id, *ids] for ids in prompts]
    tokens = tiny_model.generate_ids(prompts, sampling=Sampling(12)).tokens
    whole = [tokenizer.decode(ids) for ids in tokens]
    stop = whole[0][4:7]
    for until in (["\u2603never"], [stop]):
        settings = {"until": until, "max_gen_toks": 12, "do_sample": False, "temperature": 0}
        answers = completions.generate_until(
            [instance("generate_until", text, dict(settings)) for text in CONTEXTS]
        )
        assert answers == [text.split(until[0])[0] for text in whole]


def test_chat_completions(lm_eval, server, tiny_model):
    """`local-chat-completions`, equal to `GritLM.generate`."""
    from lm_eval.models.api_models import JsonChatStr

    chat = lm_eval("local-chat-completions")(
        base_url=f"{server.url}/v1/chat/completions", model="tiny", max_retries=1
    )
    prompts = [
        JsonChatStr(json.dumps([{"role": "user", "content": text.strip()}])) for text in CONTEXTS
    ]
    settings = {"until": ["\u2603never"], "max_gen_toks": 12, "temperature": 0}
    answers = chat.generate_until(
        [instance("generate_until", prompt, dict(settings)) for prompt in prompts]
    )
    assert answers == tiny_model.generate([t.strip() for t in CONTEXTS], max_new_tokens=12)


def test_mteb(server, tiny_model, sentences):
    """mteb's wrapper of OpenAI's client gives the vectors of `GritLM.encode`, empty texts aside."""
    pytest.importorskip("mteb")
    openai = pytest.importorskip("openai")
    tiktoken = pytest.importorskip("tiktoken")
    from mteb.models.model_implementations.openai_models import OpenAIModel
    from tiktoken import registry

    # Its tokenizers are downloaded, and are only used to cut texts: bytes will do.
    ranks = {bytes([i]): i for i in range(256)}
    registry.ENCODINGS["bytes"] = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={}
    )
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    width = tiny_model.embedding_width
    wrapper = OpenAIModel("tiny", 4000, "bytes", embed_dim=width, client=client)
    texts = [*sentences[:5], "größer 北京 🙂", " "]
    batches = [{"text": texts[:4]}, {"text": texts[4:]}]
    vectors = wrapper.encode(
        batches, task_metadata=None, hf_split="test", hf_subset="default", batch_size=3
    )
    np.testing.assert_allclose(vectors[:-1], tiny_model.encode(texts[:-1]), atol=1e-5)
    assert not vectors[-1].any()
    half = OpenAIModel("tiny", 4000, "bytes", embed_dim=width // 2, client=client)
    cut = half.encode([{"text": texts[:2]}], task_metadata=None, hf_split="t", hf_subset="d")
    expected = tiny_model.encode(texts[:2])[:, : width // 2]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)
