"""The service: names, keys, contexts, failures of the engine, adapters."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import numpy as np
import pytest
from live_server import live_server
from lora_folders import write_folders

from grit_jax.bench.load import Target
from grit_jax.bench.traffic import TrafficOptions, requests
from grit_jax.errors import GritError
from grit_jax.inference.adapters import with_adapters
from grit_jax.inference.decode import MOST_CACHE_BYTES, bytes_per_token
from grit_jax.inference.requests import GenerateRequest
from grit_jax.rag.index import IndexOptions, build_index
from grit_jax.serving.errors import ApiError
from grit_jax.serving.service import Service, default_context
from grit_jax.serving.settings import ServeSettings


def test_a_slot_has_the_context_or_what_fits(tiny_config):
    assert default_context(tiny_config, 4) == tiny_config.context_length
    large = dataclasses.replace(tiny_config, max_position_embeddings=2**24)
    context = default_context(large, 16)
    assert 0 < MOST_CACHE_BYTES - 16 * context * bytes_per_token(large) < MOST_CACHE_BYTES / 100


def test_names_keys_and_a_closed_engine(tiny_model):
    settings = ServeSettings("a", slots=1, context=128, api_keys=["k"], warm_up=False)
    service = Service(tiny_model, settings)
    assert service.check_model(None) == service.check_model("a") == "a"
    with pytest.raises(ApiError, match="does not exist here") as caught:
        service.check_model("b")
    assert caught.value.status == 404
    assert service.user_of("Bearer k") == "key 0" and service.user_of("Bearer K") is None
    service.engine.close()
    with pytest.raises(ApiError) as caught:
        service.submit(GenerateRequest([1]))
    assert caught.value.status == 503
    with pytest.raises(GritError, match="--context"):
        Service(tiny_model, ServeSettings("a", context=10**6))


def test_the_warm_up_compiles_what_requests_need(tiny_model):
    service = Service(tiny_model, ServeSettings("a", slots=2, context=96))
    try:
        with pytest.raises(ApiError, match="compiling"):
            service.submit(GenerateRequest([1]))
        assert not service.ready
        service.warm_up()
        assert service.ready
        service.submit(GenerateRequest(list(range(40)))).result(60)
        assert service.engine.stats().compilations == 0
    finally:
        service.engine.close()


@pytest.mark.slow
def test_ordinary_requests_compile_nothing_after_ready(tiny_model, index_path):
    """Of each kind some, alone and together; none is longer than a slot."""
    settings = ServeSettings("a", slots=2, context=512, indices={"docs": index_path})
    with live_server(tiny_model, settings) as running:
        running.service.warm_up()
        target = Target(running.url)
        sent = requests(60, TrafficOptions(store="docs", new_tokens=6))
        assert {"embed", "rerank", "documents", "search", "chat"} <= {r.kind for r in sent}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            outcomes = [target.send(request) for request in sent[:30]]
            outcomes += pool.map(target.send, sent[30:])
        assert [o.problem for o in outcomes if o.problem] == []
        for path, body in (
            ("/v1/rerank", {"query": "a quiet river", "rerank": 5}),
            ("/v1/rerank", {"query": "stone", "document_ids": ["d1", "d7"]}),
            ("/v1/score", {"queries": "a river " * 9, "document_ids": ["d3"]}),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "Rain?"}], "rerank": 7, "max_tokens": 3},
            ),
        ):
            running.post(path, store="docs", **body)
        assert running.metrics()["grit_compilations_total"] == 0


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    return write_folders(tiny_model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def adapted(tiny_model, folders, corpus, index_path, tmp_path_factory):
    """A server of the tiny model with two adapters, and an index of the model and of an adapter."""
    reds = tmp_path_factory.mktemp("reds") / "index"
    build_index(folders.merged["red"], corpus, reds, IndexOptions(), quiet=True)
    settings = ServeSettings(
        "tiny",
        slots=3,
        context=256,
        indices={"docs": index_path, "reds": reds},
        adapters=folders.adapters,
        warm_up=False,
    )
    with live_server(with_adapters(tiny_model, folders.adapters), settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(adapted):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{adapted.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_as_vllm_does(adapted, client, folders):
    models = {model.id: model for model in client.models.list().data}
    assert list(models) == ["tiny", "red", "blue"]
    assert (models["tiny"].root, models["tiny"].parent) == ("tiny", None)
    assert (models["red"].root, models["red"].parent) == (str(folders.adapters["red"]), "tiny")
    assert client.models.retrieve("blue").id == "blue"
    status, error = adapted.error("/v1/embeddings", model="green", input="x")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "this server has 'tiny', 'red', 'blue'" in error["message"]


def test_the_model_field_chooses_an_adapter(client, tiny_model, folders, sentences):
    """Every endpoint gives what the merged model gives, all of them at once."""
    asked, expected = sentences[7], {}
    for name, merged in {"tiny": tiny_model, **folders.merged}.items():
        answer = merged.generate(asked, max_new_tokens=9)[0]
        expected[name] = merged.encode(sentences[:2]), merged.prompt_ids([asked])[0], answer
    assert len({answer for _, _, answer in expected.values()}) == 3

    def check(name):
        vectors, ids, answer = expected[name]
        data = client.embeddings.create(model=name, input=sentences[:2]).data
        np.testing.assert_allclose([item.embedding for item in data], vectors, atol=2e-5)
        messages = [{"role": "user", "content": asked}]
        limits = {"model": name, "max_tokens": 9, "temperature": 0}
        reply = client.chat.completions.create(messages=messages, **limits)
        assert (reply.model, reply.choices[0].message.content) == (name, answer)
        assert client.completions.create(prompt=ids, **limits).choices[0].text == answer

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(check, [*expected, *expected]))


def test_stores_belong_to_the_weights_that_made_them(adapted, folders, tiny_model, sentences):
    body = {"messages": [{"role": "user", "content": sentences[2]}], "max_tokens": 6}
    body |= {"temperature": 0, "mode": "doc"}
    chat = lambda **more: adapted.post("/v1/chat/completions", **body, **more)
    for store, owner in (("docs", "tiny"), ("reds", "red")):
        named, default = chat(store=store, model=owner), chat(store=store)
        assert named["choices"] == default["choices"] and default["model"] == owner
        assert named["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        found = adapted.post(f"/v1/vector_stores/{store}/search", query=sentences[2])["data"]
        model = {"tiny": tiny_model, **folders.merged}[owner]
        best = (model.encode(sentences[2]) @ model.encode(sentences[:12]).T).max()
        assert abs(found[0]["score"] - best) < 0.2  # titles are part of the documents
    for store, other in (("docs", "red"), ("reds", "tiny"), ("reds", "blue")):
        owner = {"docs": "tiny", "reds": "red"}[store]
        for path, more in (
            ("/v1/chat/completions", {**body, "store": store}),
            (f"/v1/vector_stores/{store}/search", {"query": "x"}),
        ):
            status, error = adapted.error(path, model=other, **more)
            assert (status, error["code"]) == (400, "store_of_another_model")
            assert f"were made by the weights of '{owner}'" in error["message"]


def test_each_adapter_has_metrics_of_its_own(adapted):
    names = ("vllm:generation_tokens_total", "vllm:request_params_n_count")
    value = lambda name, model: adapted.metrics()[f'{name}{{model_name="{model}"}}']
    models = ("tiny", "red", "blue")
    before = {(name, model): value(name, model) for name in names for model in models}
    body = {"messages": [{"role": "user", "content": "Amber?"}], "max_tokens": 5}
    adapted.post("/v1/chat/completions", **body, model="red", ignore_eos=True)
    # Over the store of an adapter, which answers although the request names no model.
    over = adapted.post("/v1/chat/completions", **body, store="reds", ignore_eos=True)
    assert over["model"] == "red"
    adapted.wait_until_idle()
    for (name, model), count in before.items():
        grown = 0 if model != "red" else 10 if "tokens" in name else 2
        assert value(name, model) - count == grown, (name, model)


def test_the_names_of_adapters_and_their_weights_agree(tiny_model):
    with pytest.raises(ValueError):
        Service(tiny_model, ServeSettings("a", adapters={"x": "y"}))
