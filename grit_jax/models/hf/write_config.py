"""Our `ModelConfig` as the config.json of a Hugging Face checkpoint."""

from __future__ import annotations

from typing import Any

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING, ModelConfig
from grit_jax.models.hf.families import FAMILIES, Family, features
from grit_jax.models.hf.rope import rope_to_hf


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """`ModelConfig` as the config.json that transformers, sentence-transformers and vLLM read.

    `is_causal` is written explicitly: sentence-transformers can only override a key that exists,
    and would silently embed causally without it. Rotary embedding is written in the old spelling
    and in the new one.

    Raises:
      GritError: a feature that the architecture does not have in transformers (a sliding window in
        Llama).
    """
    c, family = config, FAMILIES[config.architecture]
    _check_expressible(c, family)
    act = "hidden_activation" if family.gemma else "hidden_act"
    hf: dict[str, Any] = {
        "architectures": [f"{family.class_name}ForCausalLM"],
        "model_type": c.architecture,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        act: c.hidden_act,
        "attention_dropout": 0.0,
        "rms_norm_eps": c.rms_norm_eps,
        **rope_to_hf(c),
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.initializer_range,
        "is_causal": True,
        "use_cache": True,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id,
        "pad_token_id": c.pad_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if c.architecture in ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"):
        hf["attention_bias"] = False
    if c.architecture == "llama":
        hf["mlp_bias"] = False
    if c.architecture == "gemma3_text":
        hf["use_bidirectional_attention"] = False  # sentence-transformers overrides it
    if family.gemma:
        hf["query_pre_attn_scalar"] = _whole(c.query_pre_attn_scalar or c.head_dim)
        hf["attn_logit_softcapping"] = c.attn_logit_softcapping
        hf["final_logit_softcapping"] = c.final_logit_softcapping
    if family.windows != "none":
        hf["sliding_window"] = c.sliding_window
    if family.windows in ("switched", "switched layers"):
        hf["use_sliding_window"] = c.sliding_window is not None
    if family.windows in ("switched layers", "layers"):
        hf["layer_types"] = [FULL if kind.window is None else SLIDING for kind in c.layer_kinds]
    if family.windows == "switched layers":
        # Older releases only read the number of the first layer with a window.
        full = hf["layer_types"].count(FULL)
        hf["max_window_layers"] = (
            full if hf["layer_types"][:full] == [FULL] * full else c.num_hidden_layers
        )
    if family.experts:
        names = (
            ("num_local_experts", "num_experts")
            if c.architecture == "qwen3_moe"
            else ("num_local_experts",)
        )
        hf |= dict.fromkeys(names, c.num_experts)
        hf |= {
            "num_experts_per_tok": c.num_experts_per_tok,
            "router_aux_loss_coef": c.router_aux_loss_coef,
        }
    if c.architecture == "qwen3_moe":
        hf |= {
            "moe_intermediate_size": c.moe_intermediate_size,
            "norm_topk_prob": c.norm_topk_prob,
            "decoder_sparse_step": c.decoder_sparse_step,
            "mlp_only_layers": list(c.mlp_only_layers),
        }
    return hf


def _check_expressible(config: ModelConfig, family: Family) -> None:
    """Raises GritError for a feature that transformers' class of the family never or always has."""
    c = config
    for key, needed in (
        ("num_experts", family.experts),
        ("rope_local_base_freq", family.rope_local_base_freq),
    ):
        if needed and not getattr(c, key):
            raise GritError(
                f"model.{key} is {_yaml(getattr(c, key))}, but {family.class_name} always has it;"
                " set it"
            )
    required = features(family)
    if not family.gemma:
        required |= {"query_pre_attn_scalar": None, "final_logit_softcapping": None}
    if not family.gemma or c.architecture == "gemma3_text":
        required["attn_logit_softcapping"] = None
    if not family.experts:
        required["num_experts"] = 0
    if family.rope_local_base_freq is None:
        required["rope_local_base_freq"] = None
    if c.architecture == "mixtral":
        required |= {
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": (),
            "moe_intermediate_size": c.intermediate_size,
        }
    for key, value in required.items():
        actual = getattr(c, key)
        if actual != value:
            owner = next(
                (name for name, f in FAMILIES.items() if features(f).get(key) == actual), None
            )
            fix = f"model.architecture: {owner}" if owner else f"model.{key}: {_yaml(value)}"
            raise GritError(
                f"model.{key} is {_yaml(actual)}, which {family.class_name} cannot have in"
                f" transformers; set {fix}"
            )
    if c.sliding_window is not None and family.windows == "none":
        raise GritError(
            f"model.sliding_window is {c.sliding_window}, but {family.class_name} has no sliding"
            " window in transformers; set model.architecture: mistral, or model.sliding_window:"
            " null"
        )
    if c.layer_types is not None and family.windows not in ("switched layers", "layers"):
        raise GritError(
            f"model.layer_types: the layers of {family.class_name} are all alike in transformers; "
            "set model.architecture: qwen2 or qwen3, or model.layer_types: null"
        )


def _yaml(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
