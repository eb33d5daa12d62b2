"""config.json out of a GGUF file's metadata: right values, and nothing ignored in silence."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the extra 'gguf'")

from grit_jax.errors import GritError
from grit_jax.models.hf.gguf_config import hf_config, pooling
from grit_jax.models.hf.read_config import config_from_hf


def metadata(architecture: str = "llama", **changed) -> dict:
    """Keys of a model with 6 layers of 4 heads; `__` for a dot, None to leave one out."""
    keys = {
        "block_count": 6,
        "context_length": 4096,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 64,
        "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | {key.replace("__", "."): value for key, value in changed.items()}
    keys = {f"{architecture}.{k}": value for k, value in keys.items() if value is not None}
    keys["tokenizer.ggml.tokens"] = [str(i) for i in range(100)]
    return {"general.architecture": architecture, **keys}


SHAPES = {"token_embd.weight": (100, 32), "output.weight": (100, 32)}


def read(architecture: str = "llama", factors=None, **changed) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return hf_config(metadata(architecture, **changed), SHAPES, factors, "F")


def test_sizes():
    hf = read(head_count_swa=0)  # zero: off
    assert hf["model_type"] == "llama" and hf["rms_norm_eps"] == 1e-5
    assert (hf["head_dim"], hf["num_key_value_heads"], hf["rope_theta"]) == (64, 2, 500000.0)
    assert hf["tie_word_embeddings"] is False
    tied = hf_config(metadata(), {"token_embd.weight": (100, 32)}, None, "F")
    assert tied["tie_word_embeddings"] is True
    assert read(attention__head_count_kv=None)["num_key_value_heads"] == 4
    # Without the head's size it is that of the rotary embedding, without both hidden_size / heads.
    alone = dict(attention__key_length=None, attention__value_length=None)
    assert read(**alone)["head_dim"] == 64
    assert read(**alone, rope__dimension_count=None)["head_dim"] == 8
    # A list with a value for each layer, all equal.
    assert read(feed_forward_length=[48] * 6)["intermediate_size"] == 48


def llama3_factors(factor, low, high, original, theta=500000.0, size=64) -> np.ndarray:
    """Llama 3.1's published loop over frequencies, as divisors."""
    divisors = []
    for i in range(0, size, 2):
        frequency = theta ** (-i / size)
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    "scaling", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 6.0, 16384)]
)
def test_rotary_factors_of_llama3(scaling):
    hf = read(factors=llama3_factors(*scaling))["rope_scaling"]
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    assert hf == {"rope_type": "llama3"} | dict(zip(names, scaling, strict=True))


def test_rotary_factors_of_heads_too_small_to_reach_the_factor():
    """Every wavelength is below 8192: the largest divisor is not the factor."""
    size = dict(attention__key_length=8, attention__value_length=8, rope__dimension_count=8)
    factors = llama3_factors(8.0, 1.0, 4.0, 8192, theta=10000.0, size=8)
    assert 1 < factors.max() < 8
    assert read(factors=factors, rope__freq_base=1e4, **size)["rope_scaling"]["factor"] == 8.0


def test_a_ramp_that_begins_elsewhere_divides_by_the_same():
    """Only what is computed follows from the file, not how it was written."""
    factors = llama3_factors(8.0, 2.0, 8.0, 8192)
    hf = read(factors=factors)["rope_scaling"]
    again = llama3_factors(*(v for k, v in hf.items() if k != "rope_type"))
    np.testing.assert_allclose(again, factors, rtol=1e-4)


def test_rotary_factors_that_are_not_llama3s():
    assert "rope_scaling" not in read(factors=np.ones(32, np.float32))
    other = llama3_factors(8.0, 1.0, 4.0, 8192)
    other[3] = 1.5
    for factors in (other, np.full(32, 4.0, np.float32), np.full(7, 4.0, np.float32)):
        with pytest.raises(GritError, match=r"^F: its rotary factors .*not those of Llama 3's"):
            read(factors=factors)
    with pytest.raises(GritError, match="'llama.rope.scaling.type' is 'yarn', but the file has"):
        factors = llama3_factors(8.0, 1.0, 4.0, 8192)
        read(factors=factors, rope__scaling__type="yarn", rope__scaling__factor=4.0)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 1.0, "original_context_length": 99}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 1024, "finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
        (
            {"type": "yarn", "factor": 2.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
    ],
)
def test_rotary_scaling(keys, scaling):
    hf = read(**{f"rope__scaling__{key}": value for key, value in keys.items()})
    assert hf.get("rope_scaling") == scaling
    config_from_hf(hf)


def test_linear_scaling_of_older_files_and_of_gemma3():
    assert read(rope__scale_linear=2.0)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    keys = dict(rope__scaling__type="linear", rope__scaling__factor=8.0)
    hf = read("gemma3", attention__sliding_window=512, **keys)
    config = config_from_hf(hf)
    assert config.rope_scaling.factor == 8.0 and config.rope_local_base_freq == 1e4


def test_windows():
    hf = read(attention__sliding_window=1024)
    assert (hf["model_type"], config_from_hf(hf).sliding_window) == ("mistral", 1024)
    experts = dict(expert_count=4, expert_used_count=2)
    mixtral = config_from_hf(read(attention__sliding_window=1024, **experts))
    assert (mixtral.architecture, mixtral.sliding_window) == ("mixtral", 1024)
    # As long as the longest text: no window.
    assert read(attention__sliding_window=4096)["model_type"] == "llama"
    assert read("qwen2", attention__sliding_window=32768)["sliding_window"] is None

    def local(architecture, **changed):
        hf = read(architecture, **changed)
        types = config_from_hf(hf).layer_types or [""] * 6
        return "".join("L" if kind == "sliding_attention" else "-" for kind in types)

    assert local("gemma2") == local("gemma2", attention__sliding_window=512) == "L-L-L-"
    assert read("gemma2")["sliding_window"] == 4096
    assert local("gemma3", attention__sliding_window=512) == "LLLLL-"
    assert local("gemma3") == "------"
    window = dict(attention__sliding_window=512)
    assert local("gemma3", **window, attention__sliding_window_pattern=3) == "LL-LL-"
    pattern = [True, False, False, True, True, False]
    assert local("gemma3", **window, attention__sliding_window_pattern=pattern) == "L--LL-"
    assert read("gemma3", rope__freq_base_swa=5e4)["rope_local_base_freq"] == 5e4


def test_scales_and_caps_of_gemma():
    assert read("gemma2")["final_logit_softcapping"] == 30.0
    caps = dict(final_logit_softcapping=20.0, attn_logit_softcapping=40.0)
    config = config_from_hf(read("gemma2", **caps))
    assert (config.final_logit_softcapping, config.attn_logit_softcapping) == (20.0, 40.0)
    assert config_from_hf(read("gemma3")).final_logit_softcapping is None
    hf = read("gemma3", final_logit_softcapping=30.0)
    assert config_from_hf(hf).final_logit_softcapping == 30.0
    # The largest of each divides by hidden_size / heads instead of the head's size.
    assert read("gemma3")["query_pre_attn_scalar"] == 64
    assert read("gemma3", block_count=62)["query_pre_attn_scalar"] == 8
    assert read("gemma2", block_count=46)["query_pre_attn_scalar"] == 8
    assert read("gemma2", attention__scale=64**-0.5)["query_pre_attn_scalar"] == 64


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "attention.causal", True),
        ("llama", "attention.clamp_kqv", 0.0),
        ("llama", "expert_count", 0),
        ("llama", "logit_scale", 1.0),
        ("llama", "rope.scaling.attn_factor", 1.0),
        ("llama", "tensor_data_layout", "Meta AI original pth"),
        ("llama", "use_parallel_residual", False),
        ("llama", "vocab_size", 100),
    ],
)
def test_keys_that_change_nothing(architecture, key, value):
    assert read(architecture, **{key: value}) == read(architecture)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "attention.max_alibi_bias", 8.0),
        ("llama", "attention.scale", 0.5),
        ("llama", "attention.temperature_length", 8192),
        ("llama", "attention.indexer.top_k", 64),
        ("llama", "attention.value_length", 32),
        ("llama", "attn_logit_softcapping", 30.0),
        ("llama", "embedding_length_out", 16),
        ("llama", "embedding_scale", 12.0),
        ("llama", "expert_gating_func", 2),
        ("llama", "expert_shared_count", 1),
        ("llama", "expert_weights_scale", 2.5),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "interleave_moe_layer_step", 2),
        ("llama", "logit_scale", 0.25),
        ("llama", "nextn_predict_layers", 1),
        ("llama", "residual_scale", 0.22),
        ("llama", "rope.dimension_count", 32),
        ("llama", "rope.dimension_sections", [16, 24, 24, 0]),
        ("llama", "rope.freq_base_swa", 1e4),
        ("llama", "rope.scaling.attn_factor", 1.2),
        ("llama", "router_logit_softcapping", 30.0),
        ("llama", "use_parallel_residual", True),
        ("qwen2", "attention.sliding_window", 1024),
        ("qwen3", "rope.dimension_count", 32),
        ("gemma2", "rope.freq_base_swa", 1e4),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("gemma3", "attention.sliding_window_pattern", [True, False]),
    ],
)
def test_keys_that_change_what_is_computed_are_refused(architecture, key, value):
    with pytest.raises(GritError, match=rf"^F: '{architecture}\.{key}' is "):
        read(architecture, **{key: value})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_length": None}, "'llama.embedding_length' is missing"),
        ({"attention__head_count_kv": [2, 2, 1, 2, 2, 2]}, "head_count_kv' differs between layers"),
        ({"rope__scaling__type": "longrope"}, "is 'longrope', only linear, yarn and Llama 3's"),
        ({"expert_count": 4}, "'llama.expert_used_count' is missing"),
        (
            {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 8},
            "'llama.expert_feed_forward_length' is 8, not the feed_forward_length",
        ),
    ],
)
def test_other_metadata_that_cannot_be_read(changed, message):
    with pytest.raises(GritError, match=f"^F: .*{message}"):
        read(**changed)


def test_yarn_and_experts_that_are_not_supported():
    with pytest.raises(GritError, match="a qwen3 model with experts is not supported"):
        read("qwen3", expert_count=4)
    yarn = dict(rope__scaling__type="yarn", rope__scaling__factor=4.0)
    for key, value in (("ext_factor", 0.0), ("attn_factor", 1.2), ("log_multiplier", 0.1)):
        with pytest.raises(GritError, match=f"'llama.rope.scaling.yarn_{key}' is {value}"):
            read(**yarn, **{f"rope__scaling__yarn_{key}": value})


def test_an_unknown_key_is_a_warning():
    with pytest.warns(UserWarning, match="^F: 'llama.note' is not known; ignored"):
        hf_config(metadata(note="x"), SHAPES, None, "F")


def test_tokens_and_rows():
    with pytest.raises(GritError, match=r"has 100 tokens, but token_embd.weight has 90 rows"):
        hf_config(metadata(), {"token_embd.weight": (90, 32)}, None, "F")
    with pytest.raises(GritError, match="^F: it has no weights; take the file of the whole model"):
        hf_config(metadata(), {}, None, "F")
    keys = metadata() | {"tokenizer.ggml.padding_token_id": 2**32 - 1}
    assert hf_config(keys, SHAPES, None, "F")["pad_token_id"] is None


def test_pooling():
    assert pooling(metadata("qwen3"), "F") is None
    assert pooling(metadata("qwen3", pooling_type=0), "F") is None
    assert pooling(metadata("qwen3", pooling_type=3), "F") == ("lasttoken", False)
    assert read("qwen3", pooling_type=3) == read("qwen3")
    with pytest.warns(UserWarning, match="'llama.attention.causal' is false"):
        both = metadata(pooling_type=1, attention__causal=False)
        assert pooling(both, "F") == ("mean", True)
    with pytest.raises(GritError, match="^F: a reranker"):
        pooling(metadata("qwen3", pooling_type=4), "F")
