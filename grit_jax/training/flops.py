"""Model FLOPs: the matrix products that a step needs, independent of how the program runs it.

A multiplication and an addition each count as one. Recomputation, padding and masked scores count
nothing. A backward pass is two forward ones, or one where the weights are frozen.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import OUTSIDE_LAYERS

Lengths = TypeVar("Lengths", int, np.ndarray)


def weight_flops(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """FLOPs of one token through the layers' matrices of these shapes; of experts, through the
    chosen ones."""
    share = config.num_experts_per_tok / config.num_experts if config.num_experts else 1
    total = 0.0
    for name, shape in shapes.items():
        if not name.startswith(OUTSIDE_LAYERS) and not name.endswith(("_norm", "_bias")):
            total += 2 * math.prod(shape) * (share if name.startswith("expert_") else 1)
    return round(total)


def head_flops(config: ModelConfig) -> int:
    """FLOPs of one token through the vocabulary's head."""
    return 2 * config.hidden_size * config.vocab_size


def attention_flops(config: ModelConfig, pairs: int) -> int:
    """FLOPs of the scores and the weighted values of (query, key) pairs, in one layer each."""
    return 4 * config.num_attention_heads * config.head_dim * pairs


def visible_pairs(lengths: Lengths, bidirectional: Lengths, window: int | None) -> Lengths:
    """(query, key) pairs that attention computes in one layer.

    Args:
      lengths: tokens of each text; all of them see themselves and the earlier ones.
      bidirectional: how many of them also see the later ones of these.
      window: of the layer: a token sees keys at a distance below it.
    """
    causal = _causal_pairs(lengths, window)
    return causal + _causal_pairs(bidirectional, window) - bidirectional


def _causal_pairs(lengths: Lengths, window: int | None) -> Lengths:
    reach = lengths if window is None else np.minimum(lengths, window)
    return reach * (reach + 1) // 2 + (lengths - reach) * reach


def trained_flops(matrices: int, attention: int, adapters: int | None, *, trained: bool) -> int:
    """Forward and, if `trained`, backward FLOPs of a pass, from those of its forward pass.

    Args:
      matrices: through weight matrices.
      attention: of scores and weighted values.
      adapters: through LoRA's matrices, while `matrices` are frozen; None without LoRA.
    """
    if not trained:
        return matrices + attention
    if adapters is None:
        return 3 * (matrices + attention)
    return 2 * matrices + 3 * (attention + adapters)
