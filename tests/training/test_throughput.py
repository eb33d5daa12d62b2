"""Model FLOPs against the compiler's count and against masks counted pair by pair; what a line says
of the devices."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from grit_jax.models.config import FULL, SLIDING, ModelConfig
from grit_jax.models.transformer import init_params
from grit_jax.training import throughput as measure
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.training.throughput import count_tokens, memory_in_use, model_flops, peak_flops
from grit_jax.types import (
    AttentionMode,
    Batch,
    CachedBatch,
    EmbeddingBatch,
    GenerativeBatch,
    PreferenceBatch,
    Rows,
    TeacherRows,
)

BIDIRECTIONAL, CAUSAL, PREFIX = (
    AttentionMode.BIDIRECTIONAL,
    AttentionMode.CAUSAL,
    AttentionMode.PREFIX,
)
MODEL = ModelConfig(
    vocab_size=96,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    dtype="float32",
    remat="none",
    scan_layers=False,
)


def packed(lengths: list[list[int]], width: int) -> Rows:
    """Rows of texts of these lengths; the first half of each is a block."""
    rows = Rows(*(np.zeros((len(lengths), width), np.int32) for _ in range(4)))
    for r, texts in enumerate(lengths):
        start = 0
        for number, n in enumerate(texts, 1):
            here = slice(start, start + n)
            rows.tokens[r, here], rows.positions[r, here], rows.segments[r, here] = (
                1,
                np.arange(n),
                number,
            )
            rows.blocks[r, start : start + n // 2] = 1
            start += n
    return rows


def embedding(rows: Rows, queries: int, passages: int) -> EmbeddingBatch:
    places = np.arange(queries + passages, dtype=np.int32)
    return EmbeddingBatch(rows, rows.segments > 0, places[:queries], places[queries:])


def generative(rows: Rows) -> GenerativeBatch:
    return GenerativeBatch(
        rows, (rows.segments > 0).astype(np.float32), np.zeros_like(rows.segments)
    )


def test_a_training_step_is_what_the_compiler_counts():
    """Full rows of one text that sees itself whole: nothing is padded or masked, so the counts may
    be compared."""
    T, config = 64, StepConfig(MODEL, LossConfig())
    batch = Batch(embedding(dataclasses.replace(packed([[T]] * 8, T), blocks=None), 4, 4))
    params = init_params(MODEL, jax.random.key(0))
    step = jax.jit(jax.value_and_grad(lambda params, batch: joint_loss(params, batch, config)[0]))
    counted = step.lower(params, batch).cost_analysis()["flops"]
    assert model_flops(batch, config) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("mode", [CAUSAL, PREFIX])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_counted_pair_by_pair(mode, window):
    """Against the masks themselves; one of the two layers has the window."""
    model = dataclasses.replace(
        MODEL, sliding_window=window, layer_types=(SLIDING, FULL) if window else None
    )
    rows, T = packed([[7, 3, 11], [1, 20]], 24), 24
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    pairs = 0
    for seen in (window or T, T):
        for r in range(2):
            s, b = rows.segments[r], rows.blocks[r]
            later = (b[:, None] * b[None] > 0) if mode is PREFIX else False
            mask = (s[:, None] == s[None]) & (s > 0) & ((j <= i) | later) & (abs(i - j) < seen)
            pairs += int(mask.sum())
    batch = Batch(generative=generative(rows))
    matrices = 42 * 2 * (2 * (128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 256) + 128 * 96)
    config = StepConfig(model, LossConfig(), generation_mode=mode)
    assert model_flops(batch, config) == 3 * (matrices + 4 * 4 * 32 * pairs)


def test_texts_read_their_own_cached_pieces():
    pieces, text = packed([[4, 6], [5]], 12), packed([[3, 2], [7]], 8)
    owner = np.array([[1] * 4 + [2] * 6 + [0] * 2, [1] * 5 + [0] * 7], np.int32)
    batch = Batch(cached=CachedBatch(pieces, owner, np.zeros_like(owner), generative(text)))
    config = StepConfig(MODEL, LossConfig())
    apart = model_flops(Batch(generative=generative(text)), config)
    apart += measure._pass_flops(MODEL, None, pieces, BIDIRECTIONAL)
    assert model_flops(batch, config) - apart == 3 * 2 * 4 * 4 * 32 * (3 * 4 + 2 * 6 + 7 * 5)


def test_a_teacher_has_a_forward_pass_alone():
    """Over its own rows, with logits where the student has them; its tokens count as the batch's."""
    pieces, text, read = packed([[4], [5]], 8), packed([[3], [7]], 8), packed([[6], [11]], 12)
    owner = pieces.segments
    cached = CachedBatch(pieces, owner, np.zeros_like(owner), generative(text))
    teacher = TeacherRows(read, np.full((2, 8), -1))
    config, taught = StepConfig(MODEL, LossConfig()), dataclasses.replace(cached, teacher=teacher)
    layers = 2 * (128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 256)
    pairs = 6 * 7 // 2 + 11 * 12 // 2
    forward = 2 * layers * 17 + 2 * 4 * 4 * 32 * pairs + 2 * 128 * 96 * 10
    rise = model_flops(Batch(cached=taught), config) - model_flops(Batch(cached=cached), config)
    assert rise == forward
    assert count_tokens(Batch(cached=taught))["tokens"] == 9 + 10 + 17


def test_a_base_has_a_forward_pass_alone():
    text = generative(packed([[3], [7]], 8))
    marked = dataclasses.replace(text, distilled=text.rows.segments > 0)
    config = StepConfig(MODEL, LossConfig())
    plain, taught = (model_flops(Batch(generative=b), config) for b in (text, marked))
    assert 3 * (taught - plain) == plain  # which is a forward pass and a backward one
    # At targets alone: of 10 tokens, 4 have logits.
    text.targets[:, 2:] = 0
    fewer = dataclasses.replace(text, max_targets=32)
    assert plain - model_flops(Batch(generative=fewer), config) == 3 * 6 * 2 * 128 * 96


def test_a_reference_model_and_mismatched_texts_are_read_forward_alone():
    text, other = (generative(packed(lengths, 8)) for lengths in ([[3], [7]], [[2, 4]]))
    config = StepConfig(MODEL, LossConfig())
    flops = lambda config, *parts: model_flops(Batch(preference=PreferenceBatch(*parts)), config)
    trained, read = (model_flops(Batch(generative=part), config) for part in (text, other))
    # A forward and a backward pass, which takes two: the reference model has the first alone, and
    # mismatched texts are read by both.
    assert flops(config, text) == trained + trained // 3
    assert flops(config, text, None, other) == trained + trained // 3 + 2 * read // 3
    batch = Batch(preference=PreferenceBatch(text, None, other))
    assert count_tokens(batch)["tokens"] == 10 + 6


def test_a_side_held_fixed_has_no_backward_pass():
    batch = Batch(dataclasses.replace(embedding(packed([[8], [8], [8]], 8), 1, 2), query_rows=1))
    both, query, passage = (
        model_flops(batch, StepConfig(MODEL, LossConfig(), gradient=side))
        for side in ("both", "query", "passage")
    )
    similarity = 3 * 2 * 1 * 2 * 128
    one = (both - similarity) / 9  # a forward pass of a row
    assert query - similarity == pytest.approx(5 * one) and passage - similarity == pytest.approx(
        7 * one
    )


def test_padding_is_the_share_of_empty_places():
    assert count_tokens(Batch(generative=generative(packed([[3], [5]], 16)))) == {
        "tokens": 8,
        "padding": 0.75,
    }


def test_devices_that_are_known_and_others(monkeypatch):
    device = lambda kind, used=None: types.SimpleNamespace(
        device_kind=kind, memory_stats=lambda: used and {"bytes_in_use": used}
    )
    assert peak_flops([device("TPU v5p")] * 4) == 4 * 459e12
    assert peak_flops([device("TPU v5p"), device("abacus")]) is None
    assert peak_flops(jax.devices()) is None and memory_in_use() is None  # a CPU
    monkeypatch.setattr(jax, "local_devices", lambda: [device("TPU v5p", 3), device("TPU v5p", 7)])
    assert memory_in_use() == 7
