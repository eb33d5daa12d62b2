"""The metadata of a GGUF file as a Hugging Face config.json.

Every key that begins with the architecture's name is read, or known not to change what the model
computes, or an error; a key that the package gguf does not know is a warning. Sources: `llama.cpp:
gguf-py/gguf/constants.py, conversion/*.py, src/llama-model.cpp`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING

# The format's name of an architecture -> model_type; llama is mistral's and mixtral's as well.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# `pooling_type` of a model that embeds; 0 is none and 4 a reranker's.
POOLING: dict[int, Literal["mean", "cls", "lasttoken"]] = {1: "mean", 2: "cls", 3: "lasttoken"}
_RERANKER = 4
# Layers with local attention between two with full attention, where no key says so.
_PERIODS = {"gemma2": 2, "gemma3": 6}
# Layers of the largest model, whose queries are scaled by hidden_size / heads; no key says so.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.3, and of 3.2
# Keys that do not change what our transformer computes.
_HARMLESS = (
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "attention.layer_norm_epsilon",  # all of these models have RMS norms
    "classifier.output_labels",
)
# Values with which a key that is not read changes nothing; zero, false and empty ones never do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
    "expert_weights_scale": (1.0,),
    "expert_weights_norm": (True,),  # as Mixtral does
    "expert_gating_func": (1,),  # softmax
    "rope.scaling.attn_factor": (1.0,),
    "moe_every_n_layers": (1,),
}
_YARN_ONLY = ("ext_factor", "attn_factor", "log_multiplier")
_YARN = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


class _Keys:
    """The keys of an architecture in the metadata, and which of them have been read."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, location: str) -> None:
        self.architecture, self.location = architecture, location
        prefix = architecture + "."
        self.values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
        self.unread = set(self.values)

    def get(self, key: str, default: Any = None) -> Any:
        """A number or a text; the only value of a list whose values are all equal."""
        self.unread.discard(key)
        value = self.values.get(key)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise GritError(
                    f"{self.location}: '{self.architecture}.{key}' differs between layers; only"
                    " models with equal layers are supported"
                )
            value = value[0]
        return default if value is None else value

    def required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise GritError(f"{self.location}: '{self.architecture}.{key}' is missing")
        return value

    def refuse(self, key: str, reason: str) -> GritError:
        value = self.values[key]
        return GritError(f"{self.location}: '{self.architecture}.{key}' is {value!r:.60}, {reason}")


def hf_config(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: np.ndarray | None,
    location: str,
) -> dict[str, Any]:
    """config.json of the file's model.

    Args:
      metadata: the file's keys and values.
      shapes: of its tensors, by name, the fastest axis last.
      rope_factors: what each rotary frequency is divided by, if the file has such a tensor.
      location: the file's name in messages.

    Raises:
      GritError: an unknown architecture, a missing key, or one that says that the model computes
        something that our transformer does not.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise GritError(
            f"{location}: the architecture {name!r} is not supported, only"
            f" {', '.join(ARCHITECTURES)} and mixtral"
        )
    keys = _Keys(metadata, name, location)
    if "token_embd.weight" not in shapes:
        missing = "the tensor token_embd.weight is missing" if shapes else "it has no weights"
        raise GritError(f"{location}: {missing}; take the file of the whole model")
    heads, hidden = keys.required("attention.head_count"), keys.required("embedding_length")
    head_dim = keys.get("attention.key_length") or keys.get("rope.dimension_count")
    head_dim = head_dim or hidden // heads
    hf: dict[str, Any] = {
        "model_type": ARCHITECTURES[name],
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length"),
        "num_hidden_layers": keys.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.required("context_length"),
        "rms_norm_eps": keys.required("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.get("rope.freq_base", 1e6 if name == "gemma3" else 10000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
    }
    tokens = len(metadata.get("tokenizer.ggml.tokens") or ())
    if tokens > hf["vocab_size"]:
        raise GritError(
            f"{location}: the tokenizer has {tokens} tokens, but token_embd.weight has"
            f" {hf['vocab_size']} rows; the file is damaged"
        )
    for key, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        hf[f"{ours}_token_id"] = None if token is None or token >= tokens else token
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head_dim) != head_dim:
            raise keys.refuse(key, f"but a head has {head_dim} dimensions; not supported")
    _experts(keys, hf)
    _windows(keys, hf)
    if name in _LARGEST:
        hf.pop("hidden_act")
        hf["hidden_activation"] = "gelu_pytorch_tanh"
        largest = hf["num_hidden_layers"] == _LARGEST[name]
        hf["query_pre_attn_scalar"] = hidden // heads if largest else head_dim
        hf["final_logit_softcapping"] = keys.get(
            "final_logit_softcapping", 30.0 if name == "gemma2" else None
        )
    if name == "gemma2":
        hf["attn_logit_softcapping"] = keys.get("attn_logit_softcapping", 50.0)
    scale = keys.get("attention.scale") or 0.0
    expected = hf.get("query_pre_attn_scalar", head_dim) ** -0.5
    if scale and not math.isclose(scale, expected, rel_tol=1e-4):
        raise keys.refuse("attention.scale", f"not {expected:.6g}; not supported")
    if scaling := _rope_scaling(keys, hf, rope_factors):
        hf["rope_scaling"] = scaling
    keys.unread -= {"pooling_type"}  # see `pooling`
    _refuse_unread(keys)
    return hf


def pooling(
    metadata: Mapping[str, Any], location: str
) -> tuple[Literal["mean", "cls", "lasttoken"], bool] | None:
    """How a model that embeds pools, and whether its tokens see those after them; None for a model
    that does not embed.

    Raises:
      GritError: a reranker, which does not embed.
    """
    architecture = metadata.get("general.architecture")
    kind = metadata.get(f"{architecture}.pooling_type") or 0
    if kind == _RERANKER:
        raise GritError(f"{location}: a reranker, which neither generates nor embeds")
    if kind and kind not in POOLING:
        raise GritError(f"{location}: '{architecture}.pooling_type' is {kind}; not supported")
    bidirectional = metadata.get(f"{architecture}.attention.causal") is False
    if bidirectional:
        warnings.warn(
            f"{location}: its tokens see those after them ('{architecture}.attention.causal' is"
            " false); it embeds, and what it generates means nothing",
            stacklevel=3,
        )
    return (POOLING[kind], bidirectional) if kind else None


def _experts(keys: _Keys, hf: dict[str, Any]) -> None:
    experts, used = keys.get("expert_count", 0), keys.get("expert_used_count", 0)
    if not experts:
        return
    if keys.architecture != "llama":
        raise GritError(
            f"{keys.location}: a {keys.architecture} model with experts is not supported"
        )
    width = keys.get("expert_feed_forward_length", hf["intermediate_size"])
    if width != hf["intermediate_size"]:
        raise keys.refuse("expert_feed_forward_length", "not the feed_forward_length")
    used = used or keys.required("expert_used_count")
    hf |= {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}


def _windows(keys: _Keys, hf: dict[str, Any]) -> None:
    """Sliding windows: all layers of a Mistral, or some of a Gemma."""
    window, name = keys.get("attention.sliding_window"), keys.architecture
    if name not in _PERIODS:
        if window and window >= hf["max_position_embeddings"]:
            window = None  # no text is longer
        if window and name != "llama":
            raise keys.refuse("attention.sliding_window", f"which no {name} model here has")
        hf["sliding_window"] = window or None
        if window and hf["model_type"] == "llama":
            hf["model_type"] = "mistral"
        return
    layers, pattern = hf["num_hidden_layers"], "attention.sliding_window_pattern"
    local = keys.values.get(pattern, _PERIODS[name])
    keys.unread.discard(pattern)
    if not isinstance(local, list):
        local = [bool((i + 1) % local) if local else False for i in range(layers)]
    if len(local) != layers:
        raise keys.refuse(pattern, f"not a value for each of the {layers} layers")
    if window is None and name == "gemma2":
        window = 4096
    hf["sliding_window"] = window or 4096
    hf["layer_types"] = [SLIDING if window and i else FULL for i in local]
    base = keys.get("rope.freq_base_swa", 10000.0 if name == "gemma3" else hf["rope_theta"])
    if name == "gemma3":
        hf["rope_local_base_freq"] = base
    elif base != hf["rope_theta"]:
        raise keys.refuse("rope.freq_base_swa", "not the rope.freq_base; not supported")


def _rope_scaling(
    keys: _Keys, hf: Mapping[str, Any], factors: np.ndarray | None
) -> dict[str, Any] | None:
    kind, factor = keys.get("rope.scaling.type"), keys.get("rope.scaling.factor")
    if kind is None and (factor := keys.get("rope.scale_linear", factor)):  # files of 2023
        kind = "linear"
    scaled = kind not in (None, "none") and (factor not in (None, 1.0) or kind == "longrope")
    scaling: dict[str, Any] | None = None
    if factors is not None and not (factors == 1).all():
        if scaled:
            raise keys.refuse(
                "rope.scaling.type", "but the file has rotary factors (rope_freqs.weight) as well"
            )
        scaling = _llama3(hf, factors)
        if scaling is None:
            raise GritError(
                f"{keys.location}: its rotary factors (rope_freqs.weight) are not those of Llama"
                " 3's scaling; not supported"
            )
    elif scaled and kind == "linear":
        scaling = {"rope_type": "linear", "factor": factor}
    elif scaled and kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor}
        for key, ours in _YARN.items():
            if (value := keys.get(key)) is not None:
                scaling[ours] = value
        if keys.get("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
            raise keys.refuse("rope.scaling.yarn_ext_factor", "only 1 is supported")
        if "rope.scaling.yarn_attn_factor" in keys.unread:
            raise keys.refuse(
                "rope.scaling.yarn_attn_factor",
                "by which llama.cpp multiplies the usual factor of YaRN and transformers replaces"
                " it; not supported",
            )
    elif scaled:
        raise keys.refuse("rope.scaling.type", "only linear, yarn and Llama 3's are supported")
    if not (scaled and kind == "yarn"):  # then these change nothing
        keys.unread -= _YARN.keys()
        keys.unread -= {f"rope.scaling.yarn_{name}" for name in _YARN_ONLY}
    return scaling


def _llama3(hf: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any] | None:
    """The scaling with these factors; None if there is none.

    Frequencies of long waves are divided by `factor`, those of short waves by 1, and between them 1
    / divisor is linear in 1 / wavelength. The published models come first; else factor and ramp
    follow from the stored values, up to a common scale of the two ends of the ramp, which changes
    nothing: `low_freq_factor` is 1.
    """
    dims = hf["head_dim"]
    wavelength = 2 * math.pi * hf["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    if factors.shape != wavelength.shape or factors[-1] <= 1:
        return None
    factor = float(factors[-1])
    candidates = [(f, 4.0, 8192) for f in (factor, *_LLAMA3_FACTORS)]
    ramp = (factors > 1) & (factors < factor * (1 - 1e-6))
    if ramp.sum() > 1:
        share = (1 / factors[ramp].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, below = np.polyfit(1 / wavelength[ramp], share, 1)
        if below < 0 < slope:
            candidates.append((factor, round(1 - 1 / below, 3), round(slope / -below)))
    for factor, high, original in candidates:
        smooth = np.clip((original / wavelength - 1) / (high - 1), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return None


def _refuse_unread(keys: _Keys) -> None:
    """Raises for keys that change the numbers, warns of those that are not known."""
    import gguf

    def names(group: type) -> Iterator[str]:
        for value in vars(group).values():
            if isinstance(value, type):
                yield from names(value)
            elif isinstance(value, str):
                yield value.removeprefix("{arch}.")

    known = {*names(gguf.Keys), *_NEUTRAL}
    for key in sorted(keys.unread - set(_HARMLESS)):
        value = keys.values[key]
        if not value or value in _NEUTRAL.get(key, ()):
            continue
        if key in known:
            raise keys.refuse(key, "which changes what the model computes; not supported")
        warnings.warn(
            f"{keys.location}: '{keys.architecture}.{key}' is not known; ignored", stacklevel=4
        )
