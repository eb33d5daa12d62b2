"""config.json as it is written: read back it is the same configuration; refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
from golden_models import MODELS, golden_config, raises

from grit_jax.models.config import FULL, SLIDING
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.write_config import config_to_hf


@pytest.mark.parametrize("name", MODELS)
def test_config_round_trip(name):
    config = dataclasses.replace(
        config_from_hf(golden_config(name)),
        bos_token_id=7,
        eos_token_id=None,
        pad_token_id=9,
        rope_theta=12345.5,
        max_position_embeddings=77,
        tie_word_embeddings=name != "qwen2",
        rms_norm_eps=3e-6,
        initializer_range=0.01,
    )
    written = config_to_hf(config, "bfloat16")
    assert config_from_hf(written) == config
    assert config_from_hf(json.loads(json.dumps(written))) == config
    assert written["is_causal"] is True and written["dtype"] == written["torch_dtype"] == "bfloat16"
    rope = written["rope_parameters"]
    assert written["rope_theta"] == rope.get("full_attention", rope)["rope_theta"] == 12345.5
    assert written.get("sliding_window") == config.sliding_window


# What is read differently although it means the same: transformers derives Mixtral's head_dim, and
# Qwen's max_window_layers has no effect without windows.
DERIVED = {"mixtral": {"head_dim"}, "qwen2": {"max_window_layers"}, "qwen3": {"max_window_layers"}}
DERIVED["rope_yarn"] = {"max_window_layers"}


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_that_transformers_wrote(name):
    theirs = golden_config(name)
    written = config_to_hf(config_from_hf(theirs), theirs["dtype"])
    shared = theirs.keys() & written.keys() - {"rope_parameters"} - DERIVED.get(name, set())
    assert len(shared) > 15
    for key in shared:
        assert written[key] == theirs[key], key


def test_qwen_windows_round_trip():
    config = dataclasses.replace(config_from_hf(golden_config("qwen3")), sliding_window=6)
    assert config_from_hf(config_to_hf(config)) == config


def test_config_that_no_family_can_express():
    config = config_from_hf(golden_config())
    with raises("qk_norm", "qwen3"):
        config_to_hf(dataclasses.replace(config, qk_norm=True))
    with raises("attention_bias is false", "Qwen2"):
        config_to_hf(dataclasses.replace(config, architecture="qwen2"))
    with raises("num_experts is 2", "Mistral"):
        config_to_hf(dataclasses.replace(config, num_experts=2))
    with raises("num_experts is 0", "Mixtral always"):
        config_to_hf(dataclasses.replace(config, architecture="mixtral"))
    mixtral = config_from_hf(golden_config("mixtral"))
    with raises("norm_topk_prob is false", "Mixtral"):
        config_to_hf(dataclasses.replace(mixtral, norm_topk_prob=False))
    with raises("moe_intermediate_size is 7", "Mixtral"):
        config_to_hf(dataclasses.replace(mixtral, moe_intermediate_size=7))
    with raises("layer_types", "Mixtral", "alike"):
        config_to_hf(dataclasses.replace(mixtral, sliding_window=4, layer_types=(FULL, SLIDING)))
    with raises("post_norms is true", "gemma2"):
        config_to_hf(dataclasses.replace(config, post_norms=True))
    with raises("final_logit_softcapping is 3", "final_logit_softcapping: null"):
        config_to_hf(dataclasses.replace(config, final_logit_softcapping=3.0))
    with raises("rope_local_base_freq is null", "Gemma3 always"):
        config_to_hf(
            dataclasses.replace(config_from_hf(golden_config("gemma3")), rope_local_base_freq=None)
        )
    with raises("sliding_window is 4", "mistral"):
        config_to_hf(dataclasses.replace(config, architecture="llama"))
