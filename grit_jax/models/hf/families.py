"""The supported model families: the names of transformers, and its defaults for keys that are
missing in config.json."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

# Which layers of a family have sliding windows:
#   none: no layer.
#   all: every layer, if `sliding_window` is set.
#   switched: every layer, if `use_sliding_window` is true.
#   switched layers: those that `layer_types` or `max_window_layers` says, if `use_sliding_window`.
#   layers: those that `layer_types` or a repeating pattern says.
Windows = Literal["none", "all", "switched", "switched layers", "layers"]


@dataclasses.dataclass(frozen=True)
class Family:
    """Names, defaults, and the features of `ModelConfig` that all models of the family share."""

    class_name: str
    windows: Windows
    max_positions: int
    kv_heads: int | None = None  # None: as many as query heads
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    sliding_window: int | None = None
    full_every: int = 0  # without `layer_types`, every n-th layer has full attention
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_local_base_freq: float | None = None
    tied: bool = False
    # Defaults of sizes that config.json must give in other families.
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    # Features.
    attention_bias: bool = False
    qk_norm: bool = False
    experts: bool = False
    gemma: bool = False


_GEMMA_SIZES = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
# Defaults of transformers' configuration classes (`transformers: models/*/configuration_*.py`).
FAMILIES: dict[str, Family] = {
    "mistral": Family("Mistral", "all", 131072, kv_heads=8, bos=1, eos=2, sliding_window=4096),
    "llama": Family("Llama", "none", 2048, bos=1, eos=2),
    "qwen2": Family(
        "Qwen2", "switched layers", 32768, kv_heads=32, sliding_window=4096, attention_bias=True
    ),
    "qwen3": Family(
        "Qwen3",
        "switched layers",
        32768,
        kv_heads=32,
        head_dim=128,
        sliding_window=4096,
        qk_norm=True,
    ),
    "mixtral": Family(
        "Mixtral",
        "all",
        131072,
        kv_heads=8,
        bos=1,
        eos=2,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        experts=True,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "switched",
        32768,
        kv_heads=4,
        sliding_window=4096,
        qk_norm=True,
        experts=True,
    ),
    "gemma2": Family(
        "Gemma2",
        "layers",
        8192,
        kv_heads=4,
        bos=2,
        eos=1,
        pad=0,
        head_dim=256,
        sliding_window=4096,
        full_every=2,
        tied=True,
        sizes={"vocab_size": 256000, **_GEMMA_SIZES},
        attn_softcap=50.0,
        logit_softcap=30.0,
        gemma=True,
    ),
    "gemma3_text": Family(
        "Gemma3",
        "layers",
        131072,
        kv_heads=4,
        bos=2,
        eos=1,
        pad=0,
        head_dim=256,
        sliding_window=4096,
        full_every=6,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        tied=True,
        sizes={"vocab_size": 262208, **_GEMMA_SIZES},
        qk_norm=True,
        gemma=True,
    ),
}


def features(family: Family) -> dict[str, Any]:
    """The fields of `ModelConfig` that are the same in every model of the family."""
    return {
        "attention_bias": family.attention_bias,
        "qk_norm": family.qk_norm,
        "hidden_act": "gelu_pytorch_tanh" if family.gemma else "silu",
        "zero_centered_norm": family.gemma,
        "post_norms": family.gemma,
        "scale_embeddings": family.gemma,
    }
