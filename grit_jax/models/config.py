"""The shape of a model: every family is this one dataclass with different values."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer in the Mistral / Llama / Qwen shape.

    Names follow Hugging Face's config.json where it has one for the same thing.

    Raises:
      ValueError: sizes that do not fit together; the message names the key.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # bias on q, k, v (Qwen2)
    qk_norm: bool = False  # RMS norm over each head's query and key (Qwen3)
    sliding_window: int | None = None
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    architecture: Literal["mistral", "llama", "qwen2", "qwen3"] = "mistral"  # what an export is called
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = None

    # How it computes rather than what: none of these changes a result beyond rounding.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "full", "dots"] = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads"):  # fmt: skip
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} must be at least 1, is {getattr(self, key)}")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"model.num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim < 1 or self.head_dim % 2:
            raise ValueError(f"model.head_dim must be even and positive for rotary embedding, is {self.head_dim}")

    @property
    def heads_per_kv(self) -> int:
        """How many query heads share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def num_parameters(self) -> int:
        """Number of weights, embeddings included, tied ones once."""
        from grit_jax.models.transformer import parameter_shapes

        total = 0
        for shape in parameter_shapes(self).values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total
