"""config.json of the four families: both spellings, what missing keys mean, round trips, refusals."""

import dataclasses
import json
from pathlib import Path

import pytest

from grit_jax.models.hf_config import config_from_hf, config_to_hf
from grit_jax.types import GritError

GOLDEN = Path(__file__).parent / "golden"  # written by transformers: see make_golden.py
FAMILIES = ("mistral", "llama", "qwen2", "qwen3")


def raises(*words):
    """A GritError whose message has all of the words, in this order."""
    return pytest.raises(GritError, match="(?s)" + ".*".join(words))


def hf(name="mistral", **changes):
    """A golden config.json with changes; a value of `...` removes the key."""
    tree = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    return {key: value for key, value in tree.items() if value is not ...}


def test_config_of_each_family():
    mistral, llama, qwen2, qwen3 = (config_from_hf(hf(name)) for name in FAMILIES)
    assert mistral.sliding_window == 4 and mistral.pad_token_id == 0 and mistral.rms_norm_eps == 1e-5
    assert (llama.num_key_value_heads, llama.rope_theta, llama.sliding_window) == (1, 500000.0, None)
    assert qwen2.attention_bias and qwen2.tie_word_embeddings and not qwen2.qk_norm
    assert qwen3.qk_norm and qwen3.head_dim == 16 and qwen3.pad_token_id == 5 and not qwen3.attention_bias
    assert [c.architecture for c in (mistral, llama, qwen2, qwen3)] == list(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_round_trip(name):
    config = dataclasses.replace(
        config_from_hf(hf(name)), bos_token_id=7, eos_token_id=None, pad_token_id=9, rope_theta=12345.5,
        max_position_embeddings=77, tie_word_embeddings=name != "qwen2",
        rms_norm_eps=3e-6, initializer_range=0.01,
    )  # fmt: skip
    written = config_to_hf(config, "bfloat16")
    assert config_from_hf(written) == config
    assert config_from_hf(json.loads(json.dumps(written))) == config
    assert written["is_causal"] is True and written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 12345.5
    assert written.get("sliding_window") == (4 if name == "mistral" else None)


def test_qwen_windows_round_trip():
    config = dataclasses.replace(config_from_hf(hf("qwen3")), sliding_window=6)
    assert config_from_hf(config_to_hf(config)) == config


def test_spellings_of_older_transformers():
    new = config_from_hf(hf("llama"))
    old = hf("llama", rope_parameters=..., rope_theta=500000.0, rope_scaling=None, torch_dtype="float16")
    assert config_from_hf(old) == new
    assert config_from_hf(old | {"rope_scaling": {"type": "default"}}) == new
    assert config_from_hf(old | {"model_type": None}) == new  # by the class name alone
    assert config_from_hf(hf("llama", rope_parameters=...)).rope_theta == 10000.0
    assert config_from_hf(hf(eos_token_id=[5, 6])).eos_token_id == 5


def test_missing_keys_mean_what_they_mean_to_transformers():
    bare = hf(head_dim=..., sliding_window=..., num_key_value_heads=..., num_attention_heads=8)
    config = config_from_hf(bare)
    assert (config.head_dim, config.sliding_window, config.num_key_value_heads) == (4, 4096, 8)
    assert config_from_hf(hf("llama", num_key_value_heads=...)).num_key_value_heads == 6
    # Qwen's window counts only where it is switched on, and from max_window_layers on.
    assert config_from_hf(hf("qwen2", sliding_window=8)).sliding_window is None
    on = hf("qwen2", sliding_window=8, use_sliding_window=True, layer_types=...)
    assert config_from_hf(on).sliding_window is None  # max_window_layers 28 of 2 layers
    assert config_from_hf(on | {"max_window_layers": 0}).sliding_window == 8


@pytest.mark.parametrize(
    "tree, words",
    [
        (hf(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
         ("GPTNeoXForCausalLM", "not supported", "known: .*MistralForCausalLM.*Qwen3ForCausalLM")),
        (hf(model_type=..., architectures=...), ("model_type", "known")),
        (hf(hidden_size=...), ("'hidden_size' is missing",)),
        (hf(hidden_size="32"), ("'hidden_size' must be a whole number, is '32'",)),
        (hf(hidden_size=None), ("'hidden_size' must be a whole number",)),
        (hf(num_key_value_heads=3), ("num_key_value_heads",)),
        (hf(num_attention_heads=0), ("num_attention_heads must be at least 1",)),
        (hf(sliding_window=0), ("sliding_window.* at least 1",)),
        (hf(rms_norm_eps=None), ("rms_norm_eps",)),
        (hf(eos_token_id="</s>"), ("eos_token_id", "</s>")),
        (hf(rope_parameters={"rope_type": "llama3", "factor": 8.0}), ("llama3", "rope_parameters")),
        (hf(rope_scaling={"type": "dynamic", "factor": 2.0}), ("dynamic", "rope_scaling")),
        (hf(rope_parameters={"full_attention": {"rope_type": "default"}}), ("differs between layers",)),
        (hf(rope_theta=5.0), ("rope_theta.* 5.0", "10000.0", "make them equal")),
        (hf(rope_parameters=7), ("rope_parameters", "mapping")),
        (hf(hidden_act="gelu"), ("hidden_act", "gelu")),
        (hf("llama", mlp_bias=True), ("mlp_bias",)),
        (hf("llama", attention_bias=True), ("attention_bias",)),
        (hf(quantization_config={"quant_method": "gptq"}), ("quantised", "gptq")),
        (hf("qwen2", use_sliding_window=True, sliding_window=4, layer_types=..., max_window_layers=1),
         ("layer_types",)),
    ],
)  # fmt: skip
def test_config_refusals(tree, words):
    with raises("somewhere/config.json", *words):
        config_from_hf(tree, "somewhere/config.json")


def test_config_that_no_family_can_express():
    config = config_from_hf(hf())
    with raises("qk_norm", "qwen3"):
        config_to_hf(dataclasses.replace(config, qk_norm=True))
    with raises("attention_bias is false", "Qwen2"):
        config_to_hf(dataclasses.replace(config, architecture="qwen2"))
    with raises("sliding_window is 4", "mistral"):
        config_to_hf(dataclasses.replace(config, architecture="llama"))
