"""Reads config.json of a Hugging Face checkpoint as `ModelConfig` (`write_config.py` writes it).

Features that our transformer does not compute (other rotary scalings, other biases, quantised
weights) are errors that name the key: a checkpoint that loads gives the numbers of transformers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING, ModelConfig
from grit_jax.models.hf.families import FAMILIES, Family, features
from grit_jax.models.hf.rope import rope_from_hf

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# model_type of a multimodal model whose text part is read -> model_type of that part.
_TEXT_OF = {"gemma3": "gemma3_text"}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Typed access to the values of a config.json; `location` is its name in messages."""

    tree: dict[str, Any]
    location: str

    def integer(self, key: str, default: int | None) -> int | None:
        value = self.tree.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise GritError(f"{self.location}: '{key}' must be a whole number, got {value!r}")
        return value

    def required(self, key: str, default: int | None = None) -> int:
        value = self.integer(key, default)
        if value is None:
            raise GritError(f"{self.location}: '{key}' must be a whole number, got null")
        return value

    def optional_number(self, key: str, default: float | None) -> float | None:
        value = self.tree.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise GritError(f"{self.location}: '{key}' must be a number, got {value!r}")
        return None if value is None else float(value)

    def number(self, key: str, default: float) -> float:
        value = self.optional_number(key, default)
        if value is None:
            raise GritError(f"{self.location}: '{key}' must be a number, got null")
        return value

    def token(self, key: str, default: int | None) -> int | None:
        ids = token_ids(self.tree.get(key, default), f"{self.location}: '{key}'")
        return ids[0] if ids else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.tree.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise GritError(f"{self.location}: '{key}' must be true or false, got {value!r}")
        return bool(value)


def config_from_hf(hf: dict[str, Any], location: str = "config.json") -> ModelConfig:
    """A Hugging Face config.json as `ModelConfig`. `dtype`, `remat` and `scan_layers` keep our
    defaults.

    Reads both spellings of rotary embedding (`rope_theta` with `rope_scaling`, and
    `rope_parameters`), and the text part of Gemma 3's multimodal models. With several
    end-of-sequence ids, the first is used (`directory.read_model_directory` returns them all). A
    missing key has the default of transformers.

    Args:
      hf: the parsed config.json.
      location: the file's name in messages.

    Raises:
      GritError: an unknown architecture, a feature that our transformer does not compute, a missing
        key, or a value of the wrong type.
    """
    hf = _text_part(hf, location)
    name, family = _family(hf, location)
    for key in _REQUIRED:
        if key not in hf and key not in family.sizes:
            raise GritError(f"{location}: '{key}' is missing; a {family.class_name} model needs it")
    _refuse(hf, location, name, family)
    read = _Reader(hf, location)
    sizes = {key: read.required(key, family.sizes.get(key)) for key in _REQUIRED}
    kv_heads = read.integer("num_key_value_heads", family.kv_heads)
    max_positions = read.required("max_position_embeddings", family.max_positions)
    rope = rope_from_hf(hf, family, max_positions, location)
    try:
        return ModelConfig(
            **sizes,
            num_key_value_heads=sizes["num_attention_heads"] if kv_heads is None else kv_heads,
            head_dim=read.integer("head_dim", family.head_dim) or 0,
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            rope_local_base_freq=rope.local_base,
            rms_norm_eps=read.number("rms_norm_eps", family.rms_norm_eps),
            tie_word_embeddings=read.flag("tie_word_embeddings", family.tied),
            max_position_embeddings=max_positions,
            initializer_range=read.number("initializer_range", 0.02),
            architecture=name,  # a key of FAMILIES
            bos_token_id=read.token("bos_token_id", family.bos),
            eos_token_id=read.token("eos_token_id", family.eos),
            pad_token_id=read.token("pad_token_id", family.pad),
            **features(family),
            **_windows(read, family, sizes["num_hidden_layers"]),
            **(_gemma(read, family) if family.gemma else {}),
            **(_experts(read, name) if family.experts else {}),
        )
    except ValueError as error:
        raise GritError(f"{location}: {error}") from None


def token_ids(value: Any, location: str) -> tuple[int, ...]:
    """An `eos_token_id` (null, a number or a list of numbers) as a tuple.

    Raises:
      GritError: anything else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise GritError(f"{location} must be a token id, a list of them or null, got {value!r}")
    return tuple(ids)


def _text_part(hf: dict[str, Any], location: str) -> dict[str, Any]:
    """The configuration of the text model within that of a multimodal model."""
    text_type = _TEXT_OF.get(str(hf.get("model_type")))
    if text_type is None:
        return hf
    text = hf.get("text_config", {})
    if not isinstance(text, dict):
        raise GritError(f"{location}: 'text_config' must be a mapping, got {text!r}")
    outer = {
        key: hf[key]
        for key in ("eos_token_id", "tie_word_embeddings", "quantization_config")
        if key in hf
    }
    return outer | text | {"model_type": text_type}


def _family(hf: dict[str, Any], location: str) -> tuple[str, Family]:
    """The family, from `model_type` or else from the name of the class."""
    classes = hf.get("architectures") or []
    named = hf.get("model_type") or next(
        (
            name
            for name, family in FAMILIES.items()
            for cls in classes
            if str(cls).startswith(f"{family.class_name}For")
        ),
        None,
    )
    if named in FAMILIES:
        return named, FAMILIES[named]
    known = ", ".join(f"{family.class_name}ForCausalLM" for family in FAMILIES.values())
    if not named and not classes:
        raise GritError(
            f"{location}: neither 'model_type' nor 'architectures' says what model this is; known:"
            f" {known}"
        )
    raise GritError(
        f"{location}: architecture {classes[0] if classes else named!r} is not supported; known:"
        f" {known}"
    )


def _refuse(hf: dict[str, Any], location: str, name: str, family: Family) -> None:
    """Raises GritError for features that change the results and that we do not support."""
    if quantisation := hf.get("quantization_config"):
        method = quantisation
        if isinstance(quantisation, dict):
            method = quantisation.get("quant_method", "unknown method")
        raise GritError(
            f"{location}: the weights are quantised ('quantization_config' says {method!s:.60});"
            " take the checkpoint in bfloat16 or float32"
        )
    key = "hidden_activation" if family.gemma else "hidden_act"
    allowed = ("gelu_pytorch_tanh",) if family.gemma else ("silu", "swish")
    if hf.get(key) not in (None, *allowed):
        raise GritError(
            f"{location}: '{key}' is {hf[key]!r}; only {allowed[0]} is supported in"
            f" {family.class_name}"
        )
    if hf.get("mlp_bias"):
        raise GritError(
            f"{location}: 'mlp_bias' is true; biases in the feed-forward are not supported"
        )
    if hf.get("attention_bias") and name != "qwen2":
        raise GritError(
            f"{location}: 'attention_bias' is true; only Qwen2's bias on q, k and v is supported,"
            " not one on o"
        )
    if name == "gemma3_text" and hf.get("attn_logit_softcapping") is not None:
        raise GritError(
            f"{location}: 'attn_logit_softcapping' is set, which transformers ignores in Gemma 3;"
            " set it null"
        )


def _windows(read: _Reader, family: Family, layers: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types`."""
    window = read.integer("sliding_window", family.sliding_window)
    if window is not None and window < 1:
        raise GritError(
            f"{read.location}: 'sliding_window' must be at least 1 or null, got {window}"
        )
    switched = family.windows in ("switched", "switched layers")
    if (
        family.windows == "none"
        or window is None
        or (switched and not read.flag("use_sliding_window", False))
    ):
        return {}
    types = read.tree.get("layer_types")
    if types is not None and not isinstance(types, list):
        raise GritError(f"{read.location}: 'layer_types' must be a list, got {types!r}")
    if family.windows in ("all", "switched"):
        if types is not None and set(types) != {SLIDING}:
            raise GritError(
                f"{read.location}: {family.class_name} has one window for all layers, no"
                " 'layer_types'"
            )
        return {"sliding_window": window}
    if types is None and family.windows == "switched layers":
        full = read.required("max_window_layers", 28)  # layers below it have full attention
        types = [FULL if i < full else SLIDING for i in range(layers)]
    elif types is None:
        every = read.required("sliding_window_pattern", family.full_every)
        types = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    if read.flag("use_bidirectional_attention", False) and family.rope_local_base_freq is not None:
        window = window // 2 + 1  # EmbeddingGemma: half of the window on each side
    return {"sliding_window": window, "layer_types": tuple(types)}


def _gemma(read: _Reader, family: Family) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": read.number("query_pre_attn_scalar", 256.0),
        "attn_logit_softcapping": read.optional_number(
            "attn_logit_softcapping", family.attn_softcap
        ),
        "final_logit_softcapping": read.optional_number(
            "final_logit_softcapping", family.logit_softcap
        ),
    }


def _experts(read: _Reader, name: str) -> dict[str, Any]:
    """The keys of a mixture of experts. Mixtral's experts have the width `intermediate_size` and
    normalised weights; Qwen3-MoE has keys for both."""
    qwen = name == "qwen3_moe"
    count = read.integer("num_local_experts", None)
    experts: dict[str, Any] = {
        "num_experts": read.required("num_experts", 128 if qwen else 8) if count is None else count,
        "num_experts_per_tok": read.required("num_experts_per_tok", 8 if qwen else 2),
        "router_aux_loss_coef": read.number("router_aux_loss_coef", 0.001),
    }
    if qwen:
        dense = read.tree.get("mlp_only_layers") or []
        if not isinstance(dense, list) or any(
            isinstance(i, bool) or not isinstance(i, int) for i in dense
        ):
            raise GritError(
                f"{read.location}: 'mlp_only_layers' must be a list of layer numbers, got {dense!r}"
            )
        experts |= {
            "moe_intermediate_size": read.required("moe_intermediate_size", 768),
            "norm_topk_prob": read.flag("norm_topk_prob", False),
            "decoder_sparse_step": read.required("decoder_sparse_step", 1),
            "mlp_only_layers": tuple(dense),
        }
    if experts["num_experts"] < 1:
        raise GritError(
            f"{read.location}: a {FAMILIES[name].class_name} model needs at least one expert"
        )
    return experts
