"""The table of families against files that transformers wrote for a model of each."""

from __future__ import annotations

import dataclasses

import pytest
from golden_models import GOLDEN, MODELS, golden_config
from safetensors.numpy import load_file

from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.families import FAMILIES, features


@pytest.mark.parametrize("name", MODELS)
def test_names_are_those_of_transformers(name):
    config = golden_config(name)
    family = FAMILIES[config["model_type"]]
    assert config["architectures"] == [f"{family.class_name}ForCausalLM"]
    assert (family.windows == "none") == ("sliding_window" not in config)
    switched = family.windows in ("switched", "switched layers")
    assert switched == ("use_sliding_window" in config)


@pytest.mark.parametrize("name", MODELS)
def test_a_family_has_the_features_whose_weights_it_has(name):
    config = golden_config(name)
    family = FAMILIES[config["model_type"]]
    weights = load_file(GOLDEN / name / "model.safetensors")
    tensors = {tensor.removeprefix("model.") for tensor in weights}
    assert family.attention_bias == ("layers.0.self_attn.q_proj.bias" in tensors)
    assert family.qk_norm == ("layers.0.self_attn.q_norm.weight" in tensors)
    assert family.gemma == ("layers.0.pre_feedforward_layernorm.weight" in tensors)
    assert family.experts == any(".experts." in tensor for tensor in tensors)
    act = config.get("hidden_activation") or config["hidden_act"]
    assert features(family)["hidden_act"] == act


def test_features_are_settings_of_a_model():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for family in FAMILIES.values():
        assert features(family).keys() <= fields
