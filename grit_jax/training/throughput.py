"""How well a run uses its devices: tokens, padding, model FLOPs against what the chips can do,
memory in use.

Model FLOPs are those of matrix products that a step cannot do without, a multiplication and an
addition each one, over real tokens: padding, masked scores and recomputation are none. A backward
pass is two forward ones, or one where the weights are frozen. MFU is their share of what the
devices could do in bfloat16 in the time of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig, adapter_shapes
from grit_jax.models.parameters import OUTSIDE_LAYERS, parameter_shapes
from grit_jax.training.joint import StepConfig
from grit_jax.types import AttentionMode, Batch, CachedBatch, Rows

# `device_kind` -> bfloat16 operations a second of one device, dense (float16 where there is no
# bfloat16). TPU: as cloud.google.com/tpu/docs says of the chips, all of whose cores are one device;
# GPU: NVIDIA's data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """What the devices can do in a second, together; None: not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


def memory_in_use() -> int | None:
    """Bytes in use on the fullest device of this process; None: its devices do not count them (a
    CPU)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return max((s["bytes_in_use"] for s in stats if s and "bytes_in_use" in s), default=None)


def count_tokens(batch: Batch) -> dict[str, int | float]:
    """Tokens of a host batch and the share of its places that are padding."""
    segments = [rows.segments for rows in _all_rows(batch)]
    tokens = int(sum(np.count_nonzero(s) for s in segments))
    return {
        "tokens": tokens,
        "padding": round(1 - tokens / max(1, sum(s.size for s in segments)), 4),
    }


def model_flops(batch: Batch, config: StepConfig) -> int:
    """Model FLOPs of the optimizer step over a host batch."""
    model, total = config.model, 0
    if batch.embedding is not None:
        part = batch.embedding
        queries = part.query_rows if config.gradient != "both" else 0
        sides = [
            jax.tree.map(lambda x: x[:queries], part.rows),
            jax.tree.map(lambda x: x[queries:], part.rows),
        ]
        for rows, fixed in zip(sides, ("passage", "query"), strict=True):
            trained = config.gradient != fixed or not queries
            total += _pass_flops(model, config.lora, rows, config.embedding_mode, trained=trained)
        width = model.hidden_size  # a projection's is not far from it, and this product is small
        total += 3 * 2 * len(part.queries) * len(part.passages) * width
    if batch.generative is not None:
        total += _pass_flops(
            model, config.lora, batch.generative.rows, config.generation_mode, head=True
        )
    if batch.cached is not None:
        total += _pass_flops(model, config.lora, batch.cached.pieces, config.embedding_mode)
        total += _pass_flops(
            model, config.lora, batch.cached.text.rows, config.generation_mode, head=True
        )
        total += 3 * _cached_attention(model, batch.cached)
    return total


def weight_flops(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """FLOPs of a token through the layers' matrices of these shapes, of experts through those
    chosen."""
    share = config.num_experts_per_tok / config.num_experts if config.num_experts else 1
    total = 0.0
    for name, shape in shapes.items():
        if not name.startswith(OUTSIDE_LAYERS) and not name.endswith(("_norm", "_bias")):
            total += 2 * math.prod(shape) * (share if name.startswith("expert_") else 1)
    return round(total)


def _pass_flops(
    model: ModelConfig,
    lora: LoraConfig | None,
    rows: Rows,
    mode: AttentionMode,
    *,
    head: bool = False,
    trained: bool = True,
) -> int:
    """A pass over packed texts that see themselves, forward and backward."""
    lengths = _text_lengths(rows.segments)
    both_ways = lengths  # tokens that see the later ones among them, too
    if mode is AttentionMode.CAUSAL:
        both_ways = np.zeros_like(lengths)
    elif mode is AttentionMode.PREFIX:
        both_ways = _text_lengths(np.where(rows.blocks, rows.segments, 0))
    tokens, pairs = int(lengths.sum()), 0
    for kind in model.layer_kinds:
        pairs += int(_causal_pairs(lengths, kind.window).sum())
        pairs += int((_causal_pairs(both_ways, kind.window) - both_ways).sum())
    shapes = parameter_shapes(model)
    matrices = tokens * (
        weight_flops(model, shapes) + (2 * model.hidden_size * model.vocab_size if head else 0)
    )
    attention = 4 * model.num_attention_heads * model.head_dim * pairs
    if not trained:
        return matrices + attention
    if lora is None:
        return 3 * (matrices + attention)
    return 2 * matrices + 3 * (
        attention + tokens * weight_flops(model, adapter_shapes(lora, shapes))
    )


def _cached_attention(model: ModelConfig, batch: CachedBatch) -> int:
    """Scores and weighted values of texts over their cached pieces, forward."""
    owned, lengths = _text_lengths(batch.piece_owner), _text_lengths(batch.text.rows.segments)
    width = max(owned.shape[1], lengths.shape[1])
    owned, lengths = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (owned, lengths))
    pairs = sum(
        int((np.minimum(owned, kind.window or owned) * lengths).sum()) for kind in model.layer_kinds
    )
    return 4 * model.num_attention_heads * model.head_dim * pairs


def _causal_pairs(lengths: np.ndarray, window: int | None) -> np.ndarray:
    """Pairs (query, key) of texts in which a token sees itself and the earlier ones."""
    reach = np.minimum(lengths, window or lengths)
    return reach * (reach + 1) // 2 + (lengths - reach) * reach


def _text_lengths(segments: np.ndarray) -> np.ndarray:
    """Tokens of each text, `[R, G]`; 0 where a row has fewer texts."""
    R, G = len(segments), int(segments.max(initial=0))
    counts = np.bincount(
        (np.arange(R)[:, None] * (G + 1) + segments).ravel(), minlength=R * (G + 1)
    )
    return counts.reshape(R, G + 1)[:, 1:]


def _all_rows(batch: Batch) -> list[Rows]:
    found = [batch.embedding.rows] if batch.embedding is not None else []
    found += [batch.generative.rows] if batch.generative is not None else []
    return found + (
        [batch.cached.pieces, batch.cached.text.rows] if batch.cached is not None else []
    )
