"""A model behind a URL gives what the same model gives in this process."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.harness_backend import LocalBackend, TextRequest
from grit_jax.evaluation.harness_endpoint import ECHO_TOKENS, EndpointBackend
from grit_jax.inference.sampling import Sampling

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
from live_server import live_server

from grit_jax.serving.settings import ServeSettings

NOBODY = lambda count: None


@pytest.fixture(scope="module")
def backends(tiny_model, tmp_path_factory):
    """The model in this process and behind a socket."""
    directory = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(directory)
    settings = ServeSettings("tiny", slots=4, context=256, warm_up=False)
    with live_server(tiny_model, settings) as server:
        remote = EndpointBackend(Endpoint(server.url), directory)
        yield LocalBackend(tiny_model, "tiny"), remote


def test_texts_and_conversations(backends):
    local, remote = backends
    assert remote.name == "tiny" and remote.max_length == 256 - ECHO_TOKENS
    for text in ("Amber river", "<s>Amber</s>", " 0123 (yes)! größer"):
        assert remote.encode(text) == local.encode(text)
    turns = [{"role": "user", "content": "Amber?"}]
    assert remote.render(turns, add_generation_prompt=True) == local.render(
        turns, add_generation_prompt=True
    )
    assert remote.fingerprint == local.fingerprint and remote.prefix_id == local.prefix_id


@pytest.mark.slow  # compiles both sides
def test_scores(backends, sentences, tiny_model):
    local, remote = backends
    pairs = [(local.encode(sentences[i]), local.encode(sentences[i + 1])[:20]) for i in range(18)]
    context = local.encode(sentences[0])
    greedy = tiny_model.generate_ids([context], sampling=Sampling(3, ignore_eos=True)).tokens[0]
    pairs += [(context, greedy), ([1], [5])]
    done = []
    found, expected = remote.score(pairs, done.append), local.score(pairs, NOBODY)
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], atol=1e-4)
    assert [g for _, g in found] == [g for _, g in expected] and found[-2][1]
    assert sum(done) == len(pairs)


@pytest.mark.slow
def test_answers(backends, sentences):
    """Greedy ones end before any of six strings; ones that are drawn repeat with their seed."""
    local, remote = backends
    prompts = [local.encode(text) for text in sentences[:4]]
    whole = local.generate([TextRequest(ids, Sampling(10)) for ids in prompts], NOBODY)
    until = [*"☃☄★☆", whole[0][2:5], "☇"]
    requests = [TextRequest(ids, Sampling(10), until) for ids in prompts[:2]]
    requests += [TextRequest(prompts[0], Sampling(8, 1.5, seed=seed)) for seed in (0, 1)]
    done = []
    assert remote.generate(requests, done.append) == local.generate(requests, NOBODY)
    assert sum(done) == 4 and remote.generate([], NOBODY) == []


def test_replies_that_lack_something(backends, monkeypatch, tmp_path):
    _, remote = backends
    remote.tokenizer.save(tmp_path)
    monkeypatch.setattr(remote.endpoint, "complete", lambda prompts, **fields: [{"text": "a"}])
    with pytest.raises(GritError, match="prompt of 2 tokens, got 0; the server must support echo"):
        remote.score([([1], [5])], NOBODY)
    with pytest.raises(GritError, match="2 prompts, and 1 choices"):
        remote.score([([1], [5]), ([1], [6])], NOBODY)
    monkeypatch.setattr(remote.endpoint, "post", lambda path, body: {})
    with pytest.raises(GritError, match="/tokenize does not say .* give --max-length N"):
        EndpointBackend(remote.endpoint, tmp_path)
