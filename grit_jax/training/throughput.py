"""How well a run uses its devices: tokens, padding, model FLOPs, memory in use.

Model FLOPs (see `flops.py`) are those of real tokens. MFU is their share of what the devices could
do in bfloat16 in the time of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig, adapter_shapes
from grit_jax.models.parameters import parameter_shapes
from grit_jax.runtime.chips import PEAK_FLOPS
from grit_jax.training.flops import (
    attention_flops,
    head_flops,
    trained_flops,
    visible_pairs,
    weight_flops,
)
from grit_jax.training.step_config import StepConfig
from grit_jax.types import (
    AttentionMode,
    Batch,
    CachedBatch,
    GenerativeBatch,
    PreferenceBatch,
    Rows,
)


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Operations per second of the devices together; None where one of them is not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


def memory_in_use() -> int | None:
    """Bytes in use on the fullest device of this process; None where devices do not count them
    (CPUs)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return max((s["bytes_in_use"] for s in stats if s and "bytes_in_use" in s), default=None)


def count_tokens(batch: Batch) -> dict[str, int | float]:
    """Tokens of a host batch, and the share of its positions that are padding."""
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
    mode = config.generation_mode
    if (text := batch.generative) is not None:
        total += _pass_flops(model, config.lora, text.rows, mode, predicted=_predicted(text))
        if text.distilled is not None:  # by the base, which has no adapters
            total += _pass_flops(
                model, None, text.rows, mode, predicted=_predicted(text), trained=False
            )
    if batch.cached is not None:
        text = batch.cached.text
        total += _pass_flops(model, config.lora, batch.cached.cached_texts, config.embedding_mode)
        total += _pass_flops(model, config.lora, text.rows, mode, predicted=_predicted(text))
        total += 3 * _cached_attention(model, batch.cached)
        if (teacher := batch.cached.teacher) is not None:
            total += _pass_flops(
                model, config.lora, teacher.rows, mode, predicted=_predicted(text), trained=False
            )
    if batch.preference is not None:
        total += _preference_flops(batch.preference, config)
    return total


def _preference_flops(batch: PreferenceBatch, config: StepConfig) -> int:
    """The reference model reads the texts, and both models the mismatched ones, without a backward
    pass."""
    model, mode = config.model, config.generation_mode
    flops = lambda text, lora, trained: _pass_flops(
        model, lora, text.rows, mode, predicted=_predicted(text), trained=trained
    )
    total = flops(batch.text, config.lora, True) + flops(batch.text, None, False)
    return total + (2 * flops(batch.mismatched, None, False) if batch.mismatched else 0)


def _predicted(text: GenerativeBatch) -> int:
    """Tokens that have logits."""
    return int(np.count_nonzero(text.targets if text.max_targets else text.rows.segments))


def _pass_flops(
    model: ModelConfig,
    lora: LoraConfig | None,
    rows: Rows,
    mode: AttentionMode,
    *,
    predicted: int = 0,
    trained: bool = True,
) -> int:
    """A pass over packed texts that see themselves, forward and backward, and through the head at
    `predicted` tokens."""
    lengths = _text_lengths(rows.segments)
    bidirectional = lengths
    if mode is AttentionMode.CAUSAL:
        bidirectional = np.zeros_like(lengths)
    elif mode is AttentionMode.PREFIX:
        bidirectional = _text_lengths(np.where(rows.blocks, rows.segments, 0))
    tokens = int(lengths.sum())
    pairs = sum(
        int(visible_pairs(lengths, bidirectional, kind.window).sum()) for kind in model.layer_kinds
    )
    shapes = parameter_shapes(model)
    matrices = tokens * weight_flops(model, shapes) + predicted * head_flops(model)
    adapters = tokens * weight_flops(model, adapter_shapes(lora, shapes)) if lora else None
    return trained_flops(matrices, attention_flops(model, pairs), adapters, trained=trained)


def _cached_attention(model: ModelConfig, batch: CachedBatch) -> int:
    """Scores and weighted values of texts over the texts cached for them, forward."""
    owned, lengths = _text_lengths(batch.cached_owner), _text_lengths(batch.text.rows.segments)
    width = max(owned.shape[1], lengths.shape[1])
    owned, lengths = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (owned, lengths))
    pairs = sum(
        int((np.minimum(owned, kind.window or owned) * lengths).sum()) for kind in model.layer_kinds
    )
    return attention_flops(model, pairs)


def _text_lengths(segments: np.ndarray) -> np.ndarray:
    """Tokens of each text, `[B, M]`; 0 where a row has fewer texts."""
    B, M = len(segments), int(segments.max(initial=0))
    counts = np.bincount(
        (np.arange(B)[:, None] * (M + 1) + segments).ravel(), minlength=B * (M + 1)
    )
    return counts.reshape(B, M + 1)[:, 1:]


def _all_rows(batch: Batch) -> list[Rows]:
    rows = [batch.embedding.rows] if batch.embedding is not None else []
    rows += [batch.generative.rows] if batch.generative is not None else []
    if (cached := batch.cached) is not None:
        rows += [cached.cached_texts, cached.text.rows]
        rows += [cached.teacher.rows] if cached.teacher is not None else []
    if (preference := batch.preference) is not None:
        rows += [preference.text.rows]
        rows += [preference.mismatched.rows] if preference.mismatched is not None else []
    return rows
