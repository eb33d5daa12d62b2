"""config.json of every family: both spellings, what missing keys mean, round trips, refusals."""

import dataclasses
import json
from pathlib import Path

import pytest

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING, RopeScaling
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.write_config import config_to_hf
from grit_jax.models.presets import PRESETS

GOLDEN = Path(__file__).parents[1] / "golden"  # written by transformers: see make_golden.py
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def raises(*words):
    """A GritError whose message has all of the words, in this order."""
    return pytest.raises(GritError, match="(?s)" + ".*".join(words))


def hf(name="mistral", **changes):
    """A golden config.json with changes; a value of `...` removes the key."""
    tree = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    return {key: value for key, value in tree.items() if value is not ...}


def test_config_of_each_family():
    mistral, llama, qwen2, qwen3 = (
        config_from_hf(hf(name)) for name in ("mistral", "llama", "qwen2", "qwen3")
    )
    assert (
        mistral.sliding_window == 4 and mistral.pad_token_id == 0 and mistral.rms_norm_eps == 1e-5
    )
    assert (llama.num_key_value_heads, llama.rope_theta, llama.sliding_window) == (
        1,
        500000.0,
        None,
    )
    assert qwen2.attention_bias and qwen2.tie_word_embeddings and not qwen2.qk_norm
    assert (
        qwen3.qk_norm
        and qwen3.head_dim == 16
        and qwen3.pad_token_id == 5
        and not qwen3.attention_bias
    )
    assert [c.architecture for c in (mistral, llama, qwen2, qwen3)] == [
        "mistral",
        "llama",
        "qwen2",
        "qwen3",
    ]


def test_config_of_layers_that_differ():
    windows, gemma2, gemma3 = (
        config_from_hf(hf(name)) for name in ("qwen2_windows", "gemma2", "gemma3")
    )
    assert windows.layer_types == (FULL, SLIDING, SLIDING) and windows.sliding_window == 4
    assert gemma2.layer_types == (SLIDING, FULL, SLIDING) and gemma2.rope_local_base_freq is None
    assert (
        gemma2.attn_logit_softcapping,
        gemma2.final_logit_softcapping,
        gemma2.query_pre_attn_scalar,
    ) == (2, 3, 24)
    assert gemma3.layer_types == (SLIDING, SLIDING, FULL) * 2 + (SLIDING,) * 2
    assert (gemma3.rope_theta, gemma3.rope_local_base_freq, gemma3.rope_scaling) == (
        100,
        10,
        RopeScaling("linear", 3.0),
    )
    for gemma in (gemma2, gemma3):
        assert (
            gemma.zero_centered_norm
            and gemma.post_norms
            and gemma.scale_embeddings
            and gemma.tie_word_embeddings
        )
        assert gemma.hidden_act == "gelu_pytorch_tanh" and gemma.qk_norm == (gemma is gemma3)


def test_config_of_mixtures_of_experts():
    mixtral, qwen = config_from_hf(hf("mixtral")), config_from_hf(hf("qwen3_moe"))
    assert (mixtral.num_experts, mixtral.num_experts_per_tok, mixtral.moe_intermediate_size) == (
        4,
        2,
        24,
    )
    assert mixtral.norm_topk_prob and mixtral.router_aux_loss_coef == 0.02
    assert (qwen.num_experts, qwen.num_experts_per_tok, qwen.moe_intermediate_size) == (5, 3, 12)
    assert not qwen.norm_topk_prob and qwen.qk_norm
    assert [kind.experts for kind in qwen.layer_kinds] == [False, True, False, False]
    assert (
        config_from_hf(hf("qwen3_moe", num_local_experts=..., num_experts=5)) == qwen
    )  # older releases' name


@pytest.mark.parametrize("name", FAMILIES)
def test_config_round_trip(name):
    config = dataclasses.replace(
        config_from_hf(hf(name)),
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


@pytest.mark.parametrize("name", [name for name in FAMILIES if "rope" in name or name == "gemma3"])
def test_either_spelling_of_rotary_scaling_is_enough(name):
    config = config_from_hf(hf(name))
    both = config_to_hf(config)
    new = {
        key: value
        for key, value in both.items()
        if key not in ("rope_theta", "rope_scaling", "rope_local_base_freq")
    }
    old = {key: value for key, value in both.items() if key != "rope_parameters"}
    older = old | {
        "rope_scaling": {k: v for k, v in old["rope_scaling"].items() if k != "rope_type"}
    }  # only `type`
    assert config_from_hf(new) == config_from_hf(old) == config_from_hf(older) == config
    assert (
        config.rope_scaling is not None
        and both["rope_scaling"]["rope_type"] == config.rope_scaling.rope_type
    )


def test_rotary_scaling_of_published_models():
    llama = config_from_hf(
        hf(
            "llama",
            rope_parameters=...,
            rope_theta=500000.0,
            max_position_embeddings=131072,
            rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192},
        )
    )
    assert llama.rope_scaling == RopeScaling("llama3", 8.0, original_max_position_embeddings=8192)
    yarn = {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }  # as Qwen's model cards say
    assert config_from_hf(hf("qwen3", rope_scaling=yarn)).rope_scaling == RopeScaling(
        "yarn", 4.0, 32768
    )
    # What is not said is the model's own length; yarn's factor is the ratio of the two.
    assert (
        config_from_hf(
            hf("llama", rope_scaling=LLAMA3)
        ).rope_scaling.original_max_position_embeddings
        == 64
    )
    ratio = {"type": "yarn", "original_max_position_embeddings": 16}
    assert config_from_hf(hf("llama", rope_scaling=ratio)).rope_scaling.factor == 4
    with pytest.warns(UserWarning, match="novelty unknown"):
        config_from_hf(hf("llama", rope_scaling=LLAMA3 | {"novelty": 1}))


def test_gemma_defaults_and_its_multimodal_form():
    """Published multimodal configs leave out whatever equals the default."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    tree = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "eos_token_id": [1, 106],
    }
    assert config_from_hf(tree) == PRESETS["gemma3_4b"]
    only_embeds = config_from_hf(hf("gemma3", use_bidirectional_attention=True, sliding_window=8))
    assert only_embeds.sliding_window == 5


def test_qwen_windows_round_trip():
    config = dataclasses.replace(config_from_hf(hf("qwen3")), sliding_window=6)
    assert config_from_hf(config_to_hf(config)) == config


def test_spellings_of_older_transformers():
    new = config_from_hf(hf("llama"))
    old = hf(
        "llama", rope_parameters=..., rope_theta=500000.0, rope_scaling=None, torch_dtype="float16"
    )
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
    assert config_from_hf(on | {"max_window_layers": 1}).layer_types == (FULL, SLIDING)
    bare = hf(
        "gemma3", layer_types=..., num_hidden_layers=7, rope_parameters=..., num_key_value_heads=2
    )
    gemma = config_from_hf(bare)
    assert gemma.layer_types == (SLIDING,) * 5 + (FULL, SLIDING)
    assert (gemma.rope_theta, gemma.rope_local_base_freq) == (1e6, 1e4)
    assert config_from_hf(bare | {"sliding_window_pattern": 3}).layer_types == (
        SLIDING,
        SLIDING,
        FULL,
    ) * 2 + (SLIDING,)
    mixtral = config_from_hf(
        hf("mixtral", rope_parameters=..., num_local_experts=..., rms_norm_eps=...)
    )
    assert (mixtral.rope_theta, mixtral.num_experts, mixtral.rms_norm_eps) == (1e6, 8, 1e-5)


@pytest.mark.parametrize(
    "tree, words",
    [
        (
            hf(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
            (
                "GPTNeoXForCausalLM",
                "not supported",
                "known: .*MistralForCausalLM.*Qwen3ForCausalLM",
            ),
        ),
        (hf(model_type=..., architectures=...), ("model_type", "known")),
        (hf(hidden_size=...), ("'hidden_size' is missing",)),
        (hf(hidden_size="32"), ("'hidden_size' must be a whole number, got '32'",)),
        (hf(hidden_size=None), ("'hidden_size' must be a whole number",)),
        (hf(num_key_value_heads=3), ("num_key_value_heads",)),
        (hf(num_attention_heads=0), ("num_attention_heads: must be at least 1",)),
        (hf(sliding_window=0), ("sliding_window.* at least 1",)),
        (hf(rms_norm_eps=None), ("rms_norm_eps",)),
        (hf(eos_token_id="</s>"), ("eos_token_id", "</s>")),
        (
            hf(rope_parameters={"rope_type": "longrope", "factor": 8.0}),
            ("rope_parameters", "longrope", "known: linear"),
        ),
        (
            hf(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
            ("rope_parameters", "_freq_factor' is missing"),
        ),
        (hf(rope_scaling={"type": "dynamic"}), ("rope_scaling", "'factor' is missing")),
        (
            hf(rope_scaling={"type": "linear", "factor": 0.5}),
            ("rope_scaling", "factor: must be at least 1"),
        ),
        (
            hf(rope_scaling={"type": "linear", "factor": "2"}),
            ("rope_scaling", "'factor' must be a positive number"),
        ),
        (
            hf(
                rope_parameters={"rope_type": "linear", "factor": 2.0},
                rope_scaling={"type": "linear", "factor": 3.0},
            ),
            ("contradict each other",),
        ),
        (
            hf(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
            ("a part of each head",),
        ),
        (
            hf(
                "gemma3",
                rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            ),
            ("scales the layers with a window",),
        ),
        (
            hf(rope_parameters={"full_attention": {"rope_type": "default"}}),
            ("differs between layers",),
        ),
        (hf(rope_theta=5.0), ("rope_theta.* 5.0", "10000.0", "make them equal")),
        (hf(rope_parameters=7), ("rope_parameters", "mapping")),
        (hf(hidden_act="gelu"), ("hidden_act", "gelu")),
        (hf("llama", mlp_bias=True), ("mlp_bias",)),
        (hf("llama", attention_bias=True), ("attention_bias",)),
        (hf(quantization_config={"quant_method": "gptq"}), ("quantised", "gptq")),
        (
            hf(quantization_config="awq"),
            ("quantised", "'quantization_config' says awq", "bfloat16"),
        ),
        (
            hf(layer_types=["full_attention", "sliding_attention"]),
            ("Mistral has one window", "layer_types"),
        ),
        (hf("gemma2", layer_types=["full_attention"]), ("layer_types has 1 entries",)),
        (
            hf("gemma2", layer_types=["full_attention", "chunked", "chunked"]),
            ("layer_types", "'chunked'"),
        ),
        (hf("gemma2", layer_types=3), ("layer_types", "list")),
        (hf("gemma2", hidden_activation="gelu"), ("hidden_activation", "gelu_pytorch_tanh")),
        (hf("gemma3", attn_logit_softcapping=3.0), ("attn_logit_softcapping", "ignores")),
        (hf("qwen3_moe", mlp_only_layers=[0, 1, 2, 3]), ("leave no layer with experts",)),
        (hf("qwen3_moe", mlp_only_layers="1"), ("mlp_only_layers", "list")),
        (hf("qwen3_moe", num_experts_per_tok=6), ("num_experts_per_tok: must be from 1 to",)),
        (hf("mixtral", num_local_experts=0), ("at least one expert",)),
        (hf(model_type="gemma3", text_config=[]), ("text_config", "mapping")),
        (hf(tie_word_embeddings="no"), ("tie_word_embeddings", "true or false")),
    ],
)
def test_config_refusals(tree, words):
    with raises("somewhere/config.json", *words):
        config_from_hf(tree, "somewhere/config.json")


def test_config_that_no_family_can_express():
    config = config_from_hf(hf())
    with raises("qk_norm", "qwen3"):
        config_to_hf(dataclasses.replace(config, qk_norm=True))
    with raises("attention_bias is false", "Qwen2"):
        config_to_hf(dataclasses.replace(config, architecture="qwen2"))
    with raises("num_experts is 2", "Mistral"):
        config_to_hf(dataclasses.replace(config, num_experts=2))
    with raises("num_experts is 0", "Mixtral always"):
        config_to_hf(dataclasses.replace(config, architecture="mixtral"))
    mixtral = config_from_hf(hf("mixtral"))
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
        config_to_hf(dataclasses.replace(config_from_hf(hf("gemma3")), rope_local_base_freq=None))
    with raises("sliding_window is 4", "mistral"):
        config_to_hf(dataclasses.replace(config, architecture="llama"))
