"""Names, shapes, axes and initial values of the weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import (
    PARAMETER_AXES,
    init_params,
    layers_with,
    num_parameters,
    parameter_shapes,
    stack_indices,
)

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_shapes_axes_and_their_number():
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    full = dataclasses.replace(
        CONFIG,
        attention_bias=True,
        qk_norm=True,
        post_norms=True,
        num_experts=3,
        mlp_only_layers=(0,),
    )
    assert "head" not in parameter_shapes(tied)
    assert {"query_bias", "key_bias", "value_bias", "query_norm", "key_norm"} <= set(
        parameter_shapes(full)
    )
    assert set(parameter_shapes(full)) == set(PARAMETER_AXES)
    for name, shape in parameter_shapes(full).items():
        assert len(PARAMETER_AXES[name]) == len(shape), name
    # Counted by hand: layers of attention 16 x (16 + 8 + 8 + 16), feed-forward 3 x 16 x 24, two
    # norms.
    assert num_parameters(CONFIG) == 2 * (16 * 48 + 3 * 16 * 24 + 32) + 40 * 16 * 2 + 16
    assert num_parameters(tied) == num_parameters(CONFIG) - 40 * 16


def test_initialisation():
    config = dataclasses.replace(
        CONFIG, hidden_size=64, intermediate_size=128, initializer_range=0.02
    )
    make = jax.jit(init_params, static_argnums=0)
    first, second = make(config, jax.random.key(0)), make(config, jax.random.key(0))
    assert all((first[name] == second[name]).all() for name in first)
    assert all(value.dtype == jnp.float32 for value in first.values())
    assert np.std(first["up"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(first["down"]) == pytest.approx(0.02 / 2, rel=0.05)  # sqrt(2 L) = 2
    assert (first["mlp_norm"] == 1).all()
    centred = make(dataclasses.replace(config, zero_centered_norm=True), jax.random.key(0))
    assert (centred["mlp_norm"] == 0).all() and (centred["up"] == first["up"]).all()
    assert (
        abs(np.corrcoef(first["gate"].ravel(), first["up"].ravel())[0, 1]) < 0.1
    )  # not the same draw


def test_which_layers_have_which_weights():
    config = dataclasses.replace(
        CONFIG, num_hidden_layers=5, num_experts=3, mlp_only_layers=(0, 2, 4)
    )
    kinds, shapes = config.layer_kinds, parameter_shapes(config)
    for name, layers in (
        ("query", (0, 1, 2, 3, 4)),
        ("up", (0, 2, 4)),
        ("expert_up", (1, 3)),
        ("router", (1, 3)),
    ):
        assert layers_with(name, kinds) == layers and shapes[name][0] == len(layers)
    # What adapters add under a weight's name goes where the weight goes.
    assert layers_with("up_lora_a", kinds) == (0, 2, 4) and layers_with(
        "expert_up_lora_a", kinds
    ) == (1, 3)
    names = ["embed", "final_norm", "head_lora_a", "query", "up", "expert_up", "up_lora_a"]
    assert stack_indices(names, kinds, 3) == {"query": 3, "expert_up": 1}
    assert stack_indices(names, kinds, 4) == {"query": 4, "up": 2, "up_lora_a": 2}
