"""Shapes of published models by name: their config.json as `ModelConfig`.

For random initialisation at a real size, for planning, and as a reference. Tests check that
`num_parameters` of each is the publisher's number (tied embeddings counted once).
"""

from __future__ import annotations

import dataclasses

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING, ModelConfig, RopeScaling

_LLAMA3 = RopeScaling(
    "llama3", 8.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
_QWEN3 = ModelConfig(
    vocab_size=151936,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    qk_norm=True,
    max_position_embeddings=40960,
    architecture="qwen3",
    bos_token_id=151643,
    eos_token_id=151645,
)
_QWEN2 = ModelConfig(
    vocab_size=151936,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    attention_bias=True,
    max_position_embeddings=32768,
    architecture="qwen2",
    bos_token_id=151643,
    eos_token_id=151643,
)
_GEMMA = ModelConfig(
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    zero_centered_norm=True,
    post_norms=True,
    scale_embeddings=True,
    query_pre_attn_scalar=256.0,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
)


def _with(base: ModelConfig, **changes) -> ModelConfig:
    return dataclasses.replace(base, **changes)


def _gemma2(D: int, F: int, L: int, N: int, K: int, **changes) -> ModelConfig:
    """Every other layer, beginning with the first, has a window of 4096."""
    return _with(
        _GEMMA,
        architecture="gemma2",
        vocab_size=256000,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=K,
        sliding_window=4096,
        max_position_embeddings=8192,
        layer_types=tuple(FULL if i % 2 else SLIDING for i in range(L)),
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **changes,
    )


def _gemma3(D: int, F: int, L: int, N: int, K: int, window: int, **changes) -> ModelConfig:
    """Five layers with a window and a rotary base of 10,000, then one with full attention, and so
    on."""
    return _with(
        _GEMMA,
        architecture="gemma3_text",
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=K,
        qk_norm=True,
        sliding_window=window,
        layer_types=tuple(SLIDING if (i + 1) % 6 else FULL for i in range(L)),
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        **changes,
    )


def _qwen3(D: int, F: int, L: int, N: int, *, tied: bool = False) -> ModelConfig:
    return _with(
        _QWEN3,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        tie_word_embeddings=tied,
    )


PRESETS: dict[str, ModelConfig] = {
    "mistral_7b": ModelConfig(
        architecture="mistral", sliding_window=4096, max_position_embeddings=32768
    ),  # v0.1
    "mixtral_8x7b": ModelConfig(
        architecture="mixtral",
        rope_theta=1e6,
        num_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
    ),
    "llama2_7b": ModelConfig(
        architecture="llama",
        intermediate_size=11008,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
    "llama3_1_8b": ModelConfig(
        architecture="llama",
        vocab_size=128256,
        rope_theta=5e5,
        rope_scaling=_LLAMA3,
        max_position_embeddings=131072,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "llama3_2_1b": ModelConfig(
        architecture="llama",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        head_dim=64,
        rope_theta=5e5,
        rope_scaling=dataclasses.replace(_LLAMA3, factor=32.0),
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "smollm2_135m": ModelConfig(
        architecture="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rope_theta=1e5,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen2_5_0_5b": _with(
        _QWEN2,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "qwen2_5_7b": _with(
        _QWEN2,
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=131072,
    ),
    "qwen3_0_6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3_1_7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3_4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3_8b": _qwen3(4096, 12288, 36, 32),
    "qwen3_30b_a3b": _with(
        _QWEN3,
        architecture="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    "gemma2_2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma2_9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma3_270m": _gemma3(
        640, 2048, 18, 4, 1, 512, vocab_size=262144, max_position_embeddings=32768
    ),
    "gemma3_1b": _gemma3(
        1152, 6912, 26, 4, 1, 512, vocab_size=262144, max_position_embeddings=32768
    ),
    "gemma3_4b": _gemma3(  # the text part
        2560,
        10240,
        34,
        8,
        4,
        1024,
        vocab_size=262208,
        max_position_embeddings=131072,
        rope_scaling=RopeScaling("linear", 8.0),
    ),
}


def preset(name: str) -> ModelConfig:
    """The shape of a published model.

    Raises:
      GritError: an unknown name; the message lists the known ones.

    >>> preset("mistral_7b").num_hidden_layers
    32
    """
    if name not in PRESETS:
        raise GritError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
