"""The service: names, keys, contexts, failures of the engine."""

from __future__ import annotations

import dataclasses

import pytest

from grit_jax.errors import GritError
from grit_jax.inference.decode import MOST_CACHE_BYTES, bytes_per_token
from grit_jax.inference.requests import GenerateRequest
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
