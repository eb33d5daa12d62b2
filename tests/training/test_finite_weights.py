"""The weight that holds a number that is not finite is named as its file names it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.sharding import MeshConfig, make_mesh, tree_shardings
from grit_jax.training.finite_weights import check_finite


@pytest.fixture(scope="module")
def experts(config):
    """Three layers: a dense one between two with experts."""
    return dataclasses.replace(
        config, num_hidden_layers=3, num_experts=4, mlp_only_layers=(1,), attention_bias=True
    )


@pytest.fixture(scope="module")
def mesh(devices):
    return make_mesh(MeshConfig(1, 4, 2), devices)


def check(config, mesh, name=None, place=(), value=np.nan, **others):
    weights = {n: np.ones(shape, np.float32) for n, shape in parameter_shapes(config).items()}
    if name is not None:
        weights[name][place] = value
    weights = jax.device_put(weights, tree_shardings(weights, PARAMETER_AXES, mesh))
    check_finite(weights | others, config, mesh, "models/x")


def test_finite_weights_and_integers_pass(experts, mesh):
    check(experts, mesh, codes=np.full(3, 255, np.uint8), step=np.int32(1))
    check(experts, mesh, "up", (0, 0, 0), np.finfo(np.float32).max)


@pytest.mark.parametrize(
    "name, place, tensor",
    [
        ("embed", (5, 3), "embed_tokens.weight"),
        ("final_norm", (31,), "norm.weight"),
        ("head", (0, 63), "lm_head.weight"),
        ("query", (2, 31, 31), "layers.2.self_attn.q_proj.weight"),
        ("key_bias", (1, 0), "layers.1.self_attn.k_proj.bias"),
        # Stacks that not all layers have: the dense one is layer 1, those of experts are 0 and 2.
        ("up", (0, 3, 3), "layers.1.mlp.up_proj.weight"),
        ("router", (1, 0, 0), r"layers.2.mlp.gate.weight"),
        ("expert_down", (1, 3, 0, 0), r"layers.2.mlp.experts.\*.down_proj.weight"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_one_bad_number_is_found_wherever_it_is(experts, mesh, name, place, tensor, value):
    with pytest.raises(GritError, match=rf"^models/x: the weight (\w+\.)?{tensor} holds numbers"):
        check(experts, mesh, name, place, value)


def test_what_has_no_tensor_of_its_own_keeps_its_name(experts, mesh):
    bad = np.full((3, 32, 4), np.nan, np.float32)
    for name in ("query_lora_a", "embedding_projection"):
        with pytest.raises(GritError, match=f"the weight {name} holds"):
            check(experts, mesh, **{name: bad})
