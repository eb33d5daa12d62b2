"""config.json of Hugging Face checkpoints as our `ModelConfig`, and back.

What our transformer does not compute (rotary scaling, other biases, layers that differ, quantised weights) is
refused here by name: a checkpoint that loads is a checkpoint that gives its own numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from grit_jax.models.config import ModelConfig
from grit_jax.types import GritError


@dataclasses.dataclass(frozen=True)
class _Family:
    """A model family: what transformers calls it, and what it assumes where config.json is silent."""

    class_name: str
    kv_heads: int | None  # None: as many as query heads
    max_positions: int
    bos: int | None = None
    eos: int | None = None
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    sliding_window: int | None = None
    qwen_window: bool = False  # use_sliding_window, max_window_layers and layer_types decide
    windows: bool = True  # whether the family has sliding windows at all
    attention_bias: bool = False
    qk_norm: bool = False


# Defaults of transformers' configuration classes (`transformers: models/*/configuration_*.py`).
FAMILIES = {
    "mistral": _Family("Mistral", kv_heads=8, max_positions=131072, bos=1, eos=2, sliding_window=4096),
    "llama": _Family("Llama", kv_heads=None, max_positions=2048, bos=1, eos=2, windows=False),
    "qwen2": _Family("Qwen2", kv_heads=32, max_positions=32768, qwen_window=True, attention_bias=True),
    "qwen3": _Family("Qwen3", kv_heads=32, max_positions=32768, head_dim=128, qwen_window=True, qk_norm=True),
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_ROPE_NONE = (None, "default")


def config_from_hf(hf: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """A Hugging Face config.json as `ModelConfig`; keys that only say how to compute keep our defaults.

    Reads both spellings of the rotary base (`rope_theta`, `rope_parameters`). Of several end-of-sequence ids
    the first one is taken (`huggingface.read_model_directory` returns them all). A missing key means what it
    means to transformers.

    Args:
      where: the file, for messages.

    Raises:
      GritError: an unknown architecture, a feature that our transformer does not compute, a missing key, or a
        value of the wrong type.
    """
    name, family = _family(hf, where)
    for key in _REQUIRED:
        if key not in hf:
            raise GritError(f"{where}: '{key}' is missing; a {family.class_name} model needs it")
    _refuse(hf, where, name)

    def integer(key: str, default: int | None) -> int | None:
        value = hf.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise GritError(f"{where}: '{key}' must be a whole number, is {value!r}")
        return value

    def required(key: str, default: int | None = None) -> int:
        value = integer(key, default)
        if value is None:
            raise GritError(f"{where}: '{key}' must be a whole number, is null")
        return value

    def number(key: str, default: float) -> float:
        value = hf.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise GritError(f"{where}: '{key}' must be a number, is {value!r}")
        return float(value)

    def token(key: str, default: int | None) -> int | None:
        ids = token_ids(hf.get(key, default), f"{where}: '{key}'")
        return ids[0] if ids else None

    kv_heads = integer("num_key_value_heads", family.kv_heads)
    window = integer("sliding_window", family.sliding_window)
    try:
        return ModelConfig(
            vocab_size=required("vocab_size"),
            hidden_size=required("hidden_size"),
            intermediate_size=required("intermediate_size"),
            num_hidden_layers=required("num_hidden_layers"),
            num_attention_heads=required("num_attention_heads"),
            num_key_value_heads=required("num_attention_heads") if kv_heads is None else kv_heads,
            head_dim=integer("head_dim", family.head_dim) or 0,
            rope_theta=_rope_theta(hf, where),
            rms_norm_eps=number("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            attention_bias=family.attention_bias,
            qk_norm=family.qk_norm,
            sliding_window=_sliding_window(hf, family, window, where),
            max_position_embeddings=required("max_position_embeddings", family.max_positions),
            initializer_range=number("initializer_range", 0.02),
            architecture=name,  # type: ignore[arg-type]  # a key of FAMILIES
            bos_token_id=token("bos_token_id", family.bos),
            eos_token_id=token("eos_token_id", family.eos),
            pad_token_id=token("pad_token_id", None),
        )
    except ValueError as error:
        raise GritError(f"{where}: {error}") from None


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """`ModelConfig` as the config.json that transformers, sentence-transformers and vLLM read.

    `is_causal` stands there explicitly: sentence-transformers can only override a key that exists, and would
    embed causally, silently, without it. The rotary base is written in the old spelling and in the new one.

    Raises:
      GritError: the config's architecture has no such feature in transformers (a window in Llama).
    """
    c, family = config, FAMILIES[config.architecture]
    for key, allowed in (("attention_bias", family.attention_bias), ("qk_norm", family.qk_norm)):
        if getattr(c, key) != allowed:
            owner = next((n for n, f in FAMILIES.items() if getattr(f, key)), None)
            fix = (
                f"model.architecture: {owner}" if getattr(c, key) else f"model.{key}: {str(allowed).lower()}"
            )
            raise GritError(
                f"model.{key} is {str(getattr(c, key)).lower()}, but a {family.class_name} checkpoint has "
                f"{'' if allowed else 'no '}such weights; set {fix}"
            )
    if c.sliding_window is not None and not family.windows:
        raise GritError(
            f"model.sliding_window is {c.sliding_window}, but {family.class_name} has no sliding window in "
            "transformers; set model.architecture: mistral, or model.sliding_window: null"
        )
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
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
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
    if family.windows:
        hf["sliding_window"] = c.sliding_window
    if c.architecture in ("llama", "qwen3"):
        hf["attention_bias"] = False
    if c.architecture == "llama":
        hf["mlp_bias"] = False
    if family.qwen_window:
        windowed = c.sliding_window is not None
        hf["use_sliding_window"] = windowed
        hf["max_window_layers"] = 0 if windowed else c.num_hidden_layers
        hf["layer_types"] = ["sliding_attention" if windowed else "full_attention"] * c.num_hidden_layers
    return hf


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """An `eos_token_id` (null, a number or a list of numbers) as a tuple.

    Raises:
      GritError: anything else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise GritError(f"{where} must be a token id, a list of them or null, is {value!r}")
    return tuple(ids)


def _family(hf: dict[str, Any], where: str) -> tuple[str, _Family]:
    """Which family it is: by model_type, else by the name of its class."""
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
            f"{where}: neither 'model_type' nor 'architectures' says what model this is; known: {known}"
        )
    raise GritError(
        f"{where}: architecture {classes[0] if classes else named!r} is not supported; known: {known}"
    )


def _refuse(hf: dict[str, Any], where: str, name: str) -> None:
    """Raises GritError for features that change the numbers and that our transformer does not compute."""
    if hf.get("quantization_config"):
        method = dict(hf["quantization_config"]).get("quant_method", "unknown method")
        raise GritError(
            f"{where}: the weights are quantised ({method}); take the checkpoint in bfloat16 or float32"
        )
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise GritError(f"{where}: 'hidden_act' is {hf['hidden_act']!r}; only silu is supported")
    if hf.get("mlp_bias"):
        raise GritError(f"{where}: 'mlp_bias' is true; biases in the feed-forward are not supported")
    if hf.get("attention_bias") and name != "qwen2":
        raise GritError(
            f"{where}: 'attention_bias' is true; only Qwen2's bias on q, k and v is supported, not one on o"
        )


def _rope_theta(hf: dict[str, Any], where: str) -> float:
    """The rotary base from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    theta = hf.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key) or {}
        if not isinstance(rope, dict):
            raise GritError(f"{where}: '{key}' must be a mapping, is {rope!r}")
        if any(isinstance(value, dict) for value in rope.values()):
            raise GritError(
                f"{where}: '{key}' differs between layers ({', '.join(map(str, rope))}); not supported"
            )
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in _ROPE_NONE:
            raise GritError(
                f"{where}: rotary scaling {kind!r} in '{key}' is not supported; only the default is"
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise GritError(f"{where}: '{key}' rotates only a part of each head; not supported")
        inner = rope.get("rope_theta")
        if inner is not None and theta is not None and inner != theta:
            raise GritError(f"{where}: 'rope_theta' is {theta} but '{key}' says {inner}; make them equal")
        theta = inner if theta is None else theta
    if theta is None:
        return 10000.0
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or theta <= 0:
        raise GritError(f"{where}: 'rope_theta' must be a positive number, is {theta!r}")
    return float(theta)


def _sliding_window(hf: dict[str, Any], family: _Family, window: int | None, where: str) -> int | None:
    """The window of all layers, or None; layers that differ are refused."""
    if window is not None and window < 1:
        raise GritError(f"{where}: 'sliding_window' must be at least 1 or null, is {window}")
    if not family.windows or (family.qwen_window and not hf.get("use_sliding_window", False)):
        return None
    if window is None or not family.qwen_window:
        return window
    layers = hf["num_hidden_layers"]
    full = hf.get("max_window_layers", 28)  # transformers: the layers below it see everything
    kinds = hf.get("layer_types") or ["full_attention"] * min(full, layers) + ["sliding_attention"] * (
        layers - full
    )
    if len(set(kinds)) > 1:
        raise GritError(
            f"{where}: some layers have a sliding window and others none ('layer_types'); not supported"
        )
    return window if kinds[0] == "sliding_attention" else None
