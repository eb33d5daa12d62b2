"""Shapes of models: the kinds of their layers, derived sizes, refusals."""

from __future__ import annotations

import dataclasses

import pytest

from grit_jax.models.config import FULL, SLIDING, LayerKind, ModelConfig, RopeScaling

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=5,
)


def with_changes(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def test_derived_sizes():
    assert (CONFIG.head_dim, CONFIG.heads_per_kv, CONFIG.attention_scale) == (4, 2, 0.5)
    assert with_changes(head_dim=6).head_dim == 6
    assert with_changes(query_pre_attn_scalar=16.0).attention_scale == 0.25
    experts = with_changes(num_experts=3)
    assert experts.moe_intermediate_size == 24 and CONFIG.moe_intermediate_size == 0
    assert with_changes(num_experts=3, moe_intermediate_size=7).moe_intermediate_size == 7


def test_the_kinds_of_layers():
    """One window for all, some layers with it, a rotary base of their own, experts in some."""
    assert CONFIG.layer_kinds == (LayerKind(5, False, False),) * 2
    assert with_changes(sliding_window=None).layer_kinds == (LayerKind(None, False, False),) * 2
    gemma = with_changes(layer_types=(SLIDING, FULL), rope_local_base_freq=10.0)
    assert gemma.layer_kinds == (LayerKind(5, True, False), LayerKind(None, False, False))
    sparse = with_changes(
        num_hidden_layers=6, num_experts=3, decoder_sparse_step=2, mlp_only_layers=[3]
    )
    assert [kind.experts for kind in sparse.layer_kinds] == [False, True, False, False, False, True]


def test_layers_that_are_all_alike_need_no_list():
    """One model has one configuration, so that two descriptions of it compare and hash alike."""
    assert with_changes(layer_types=[SLIDING] * 2) == CONFIG
    assert with_changes(layer_types=[FULL] * 2) == with_changes(sliding_window=None)
    assert hash(with_changes(layer_types=[SLIDING, FULL])) == hash(
        with_changes(layer_types=(SLIDING, FULL))
    )


@pytest.mark.parametrize(
    "scaling, length",
    [
        (None, 1000),
        (RopeScaling("linear", 4.0), 1000),
        (RopeScaling("llama3", 4.0, 250), 1000),
        (RopeScaling("dynamic", 4.0), 4000),
        (RopeScaling("yarn", 4.0, 500), 2000),  # Qwen's cards leave max_position_embeddings alone
        (RopeScaling("yarn", 4.0, 250), 1000),
        (RopeScaling("yarn", 4.0), 4000),
    ],
)
def test_the_context_that_a_scaling_gives(scaling, length):
    config = with_changes(max_position_embeddings=1000, rope_scaling=scaling)
    assert config.context_length == length


def test_the_original_length_is_the_context_unless_given():
    config = with_changes(max_position_embeddings=77, rope_scaling=RopeScaling("llama3", 2.0))
    assert config.rope_scaling == RopeScaling("llama3", 2.0, 77)
    linear = with_changes(max_position_embeddings=77, rope_scaling=RopeScaling("linear", 2.0))
    assert linear.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: RopeScaling("linear", 0.5), "rope_scaling.factor: must be at least 1, got 0.5"),
        (lambda: RopeScaling("yarn", 2.0, 0), "original_max_position_embeddings: must be positive"),
        (
            lambda: RopeScaling("llama3", 2.0, low_freq_factor=4.0),
            r"high_freq_factor \(4.0\) must be above low_freq_factor",
        ),
        (
            lambda: with_changes(head_dim=2, rope_scaling=RopeScaling("dynamic", 2.0)),
            "dynamic needs a model.head_dim of at least 4, got 2",
        ),
    ],
)
def test_scalings_that_mean_nothing(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "change, key",
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": -2}, "head_dim"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"layer_types": ("full_attention",)}, "layer_types has 1 entries"),
        ({"layer_types": ("full_attention", "local")}, "layer_types: 'local'"),
        (
            {"layer_types": ("full_attention", "sliding_attention"), "sliding_window": None},
            "layer_types .*sliding_window",
        ),
        ({"sliding_window": 0}, "sliding_window: must be positive"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok"),
        ({"num_experts": 2, "decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"num_experts": 2, "mlp_only_layers": (0, 1)}, "mlp_only_layers"),
    ],
)
def test_sizes_that_do_not_fit(change, key):
    with pytest.raises(ValueError, match=f"model.{key}"):
        dataclasses.replace(CONFIG, **change)
