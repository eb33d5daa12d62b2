"""Weights as separate arrays: the same numbers, made once, and only where they gain something."""

from __future__ import annotations

import dataclasses
import gc

import jax
import numpy as np
import pytest
from generation import generate

from grit_jax.inference import layer_weights, placement
from grit_jax.inference.layer_weights import separate_layers, weights_of_layer
from grit_jax.inference.record_loader import Layered
from grit_jax.inference.sampling import Sampling
from grit_jax.models.config import FULL, SLIDING
from grit_jax.models.layer_stack import LayerArrays
from grit_jax.models.parameters import OUTSIDE_LAYERS, stack_indices
from grit_jax.models.transformer import init_params
from grit_jax.sharding import MeshConfig, make_mesh

PATTERN = dict(
    num_hidden_layers=4,
    sliding_window=8,
    layer_types=(SLIDING, FULL, SLIDING, FULL),
    num_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=16,
    mlp_only_layers=(0, 3),
)


@pytest.fixture
def small(monkeypatch):
    """Layers of any size are separated."""
    monkeypatch.setattr(layer_weights, "SMALLEST", 0)


@pytest.mark.parametrize("changes", [{}, PATTERN], ids=["alike", "pattern"])
def test_answers_with_separate_weights_are_those_with_stacks(
    monkeypatch, tiny_config, tiny_params, prompts, documents, changes
):
    """Over records that are loaded layer by layer, too."""
    config = dataclasses.replace(tiny_config, **changes)
    params = init_params(config, jax.random.key(1)) if changes else tiny_params
    asked = {
        "sampling": Sampling(4),
        "records": None if changes else [(Layered(documents[0]),), (), (documents[1],), ()],
        "return_logits": True,
    }
    assert separate_layers(params) is None  # a model as small as this one
    stacks = generate(params, config, prompts, **asked)
    monkeypatch.setattr(layer_weights, "SMALLEST", 0)
    assert separate_layers(params) is not None
    separate = generate(params, config, prompts, **asked)
    assert separate.tokens == stacks.tokens
    for found, expected in zip(separate.logits, stacks.logits, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_layer_gets_its_own(small, tiny_config):
    config = dataclasses.replace(tiny_config, **PATTERN)
    params = init_params(config, jax.random.key(1))
    separate = separate_layers(params)
    assert separate["embed"] is params["embed"]
    for layer in range(4):
        indices = stack_indices(params, config.layer_kinds, layer)
        own = weights_of_layer(separate, indices)
        assert ("expert_up" in own) == (layer in (1, 2)) and ("up" in own) == (layer in (0, 3))
        for name, weight in own.items():
            assert isinstance(weight, LayerArrays) and len(weight.layers) == 1
            np.testing.assert_array_equal(weight.layers[0], params[name][indices[name]])


def test_the_copy_is_shared_and_goes_with_the_weights(small, tiny_config):
    params = init_params(tiny_config, jax.random.key(1))
    one, other = separate_layers(params), separate_layers(dict(params))
    assert one["up"].layers[0] is other["up"].layers[0]
    before = len(layer_weights._made)
    stacks = sum(not name.startswith(OUTSIDE_LAYERS) for name in params)
    del params, one, other
    gc.collect()
    assert len(layer_weights._made) == before - stacks


def test_where_stacks_stay(small, monkeypatch, tiny_params):
    """On several devices, and where the memory, be it a container's, is small or unknown."""
    assert separate_layers(tiny_params, make_mesh(MeshConfig(), jax.devices()[:2])) is None
    for memory in (1000, None):
        monkeypatch.setattr(placement, "_host_memory", lambda memory=memory: memory)
        assert separate_layers(tiny_params) is None
