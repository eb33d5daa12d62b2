"""The configuration of a tiny model for a tokenizer."""

from __future__ import annotations

from typing import Any

from grit_jax.models.config import ModelConfig
from grit_jax.text.tokenizer import Tokenizer


def config_for(tokenizer: Tokenizer, **sizes: Any) -> ModelConfig:
    """Two key-value heads in float32; weights large enough that attention is far from uniform.

    Args:
      sizes: `hidden_size`, `intermediate_size`, `num_hidden_layers`, and what else is to differ.
    """
    fields = dict(
        vocab_size=tokenizer.vocab_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        dtype="float32",
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return ModelConfig(**(fields | sizes))
