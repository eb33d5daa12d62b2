"""config.json of every family: both spellings, what missing keys mean, round trips, refusals."""

import pytest
from golden_models import golden_config, raises

from grit_jax.models.config import FULL, SLIDING, RopeScaling
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.presets import PRESETS


def test_config_of_each_family():
    mistral, llama, qwen2, qwen3 = (
        config_from_hf(golden_config(name)) for name in ("mistral", "llama", "qwen2", "qwen3")
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
        config_from_hf(golden_config(name)) for name in ("qwen2_windows", "gemma2", "gemma3")
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
    mixtral, qwen = (
        config_from_hf(golden_config("mixtral")),
        config_from_hf(golden_config("qwen3_moe")),
    )
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
        config_from_hf(golden_config("qwen3_moe", num_local_experts=..., num_experts=5)) == qwen
    )  # older releases' name


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
    only_embeds = config_from_hf(
        golden_config("gemma3", use_bidirectional_attention=True, sliding_window=8)
    )
    assert only_embeds.sliding_window == 5


def test_spellings_of_older_transformers():
    new = config_from_hf(golden_config("llama"))
    old = golden_config(
        "llama", rope_parameters=..., rope_theta=500000.0, rope_scaling=None, torch_dtype="float16"
    )
    assert config_from_hf(old) == new
    assert config_from_hf(old | {"rope_scaling": {"type": "default"}}) == new
    assert config_from_hf(old | {"model_type": None}) == new  # by the class name alone
    assert config_from_hf(golden_config("llama", rope_parameters=...)).rope_theta == 10000.0
    assert config_from_hf(golden_config(eos_token_id=[5, 6])).eos_token_id == 5


def test_missing_keys_mean_what_they_mean_to_transformers():
    bare = golden_config(
        head_dim=..., sliding_window=..., num_key_value_heads=..., num_attention_heads=8
    )
    config = config_from_hf(bare)
    assert (config.head_dim, config.sliding_window, config.num_key_value_heads) == (4, 4096, 8)
    assert config_from_hf(golden_config("llama", num_key_value_heads=...)).num_key_value_heads == 6
    # Qwen's window counts only where it is switched on, and from max_window_layers on.
    assert config_from_hf(golden_config("qwen2", sliding_window=8)).sliding_window is None
    on = golden_config("qwen2", sliding_window=8, use_sliding_window=True, layer_types=...)
    assert config_from_hf(on).sliding_window is None  # max_window_layers 28 of 2 layers
    assert config_from_hf(on | {"max_window_layers": 0}).sliding_window == 8
    assert config_from_hf(on | {"max_window_layers": 1}).layer_types == (FULL, SLIDING)
    bare = golden_config(
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
        golden_config("mixtral", rope_parameters=..., num_local_experts=..., rms_norm_eps=...)
    )
    assert (mixtral.rope_theta, mixtral.num_experts, mixtral.rms_norm_eps) == (1e6, 8, 1e-5)


@pytest.mark.parametrize(
    "tree, words",
    [
        (
            golden_config(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
            (
                "GPTNeoXForCausalLM",
                "not supported",
                "known: .*MistralForCausalLM.*Qwen3ForCausalLM",
            ),
        ),
        (golden_config(model_type=..., architectures=...), ("model_type", "known")),
        (golden_config(hidden_size=...), ("'hidden_size' is missing",)),
        (golden_config(hidden_size="32"), ("'hidden_size' must be a whole number, got '32'",)),
        (golden_config(hidden_size=None), ("'hidden_size' must be a whole number",)),
        (golden_config(num_key_value_heads=3), ("num_key_value_heads",)),
        (golden_config(num_attention_heads=0), ("num_attention_heads: must be at least 1",)),
        (golden_config(sliding_window=0), ("sliding_window.* at least 1",)),
        (golden_config(rms_norm_eps=None), ("rms_norm_eps",)),
        (golden_config(eos_token_id="</s>"), ("eos_token_id", "</s>")),
        (golden_config(hidden_act="gelu"), ("hidden_act", "gelu")),
        (golden_config("llama", mlp_bias=True), ("mlp_bias",)),
        (golden_config("llama", attention_bias=True), ("attention_bias",)),
        (golden_config(quantization_config={"quant_method": "gptq"}), ("quantised", "gptq")),
        (
            golden_config(quantization_config="awq"),
            ("quantised", "'quantization_config' says awq", "bfloat16"),
        ),
        (
            golden_config(layer_types=["full_attention", "sliding_attention"]),
            ("Mistral has one window", "layer_types"),
        ),
        (golden_config("gemma2", layer_types=["full_attention"]), ("layer_types has 1 entries",)),
        (
            golden_config("gemma2", layer_types=["full_attention", "chunked", "chunked"]),
            ("layer_types", "'chunked'"),
        ),
        (golden_config("gemma2", layer_types=3), ("layer_types", "list")),
        (
            golden_config("gemma2", hidden_activation="gelu"),
            ("hidden_activation", "gelu_pytorch_tanh"),
        ),
        (
            golden_config("gemma3", attn_logit_softcapping=3.0),
            ("attn_logit_softcapping", "ignores"),
        ),
        (
            golden_config("qwen3_moe", mlp_only_layers=[0, 1, 2, 3]),
            ("leave no layer with experts",),
        ),
        (golden_config("qwen3_moe", mlp_only_layers="1"), ("mlp_only_layers", "list")),
        (
            golden_config("qwen3_moe", num_experts_per_tok=6),
            ("num_experts_per_tok: must be from 1 to",),
        ),
        (golden_config("mixtral", num_local_experts=0), ("at least one expert",)),
        (golden_config(model_type="gemma3", text_config=[]), ("text_config", "mapping")),
        (golden_config(tie_word_embeddings="no"), ("tie_word_embeddings", "true or false")),
    ],
)
def test_config_refusals(tree, words):
    with raises("somewhere/config.json", *words):
        config_from_hf(tree, "somewhere/config.json")
