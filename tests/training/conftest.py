"""A tiny joint batch, made by hand so that every number of it is known."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.types import Batch, CachedBatch, EmbeddingBatch, GenerativeBatch, Rows

VOCAB, ROWS, LENGTH = 64, 8, 16


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Two layers in float32; sizes that divide by the meshes of the tests."""
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
        dtype="float32",
        remat="none",
        initializer_range=0.2,
    )


def packed(rng: np.random.Generator, texts: int, rows: int = ROWS) -> Rows:
    """Rows of `texts` equal texts and one token of padding at the end."""
    each = (LENGTH - 1) // texts
    segments = np.zeros((rows, LENGTH), np.int32)
    positions = np.zeros((rows, LENGTH), np.int32)
    for text in range(texts):
        segments[:, text * each : (text + 1) * each] = text + 1
        positions[:, text * each : (text + 1) * each] = np.arange(each)
    return Rows(rng.integers(1, VOCAB, (rows, LENGTH)).astype(np.int32), positions, segments)


@pytest.fixture(scope="session")
def batch() -> Batch:
    """8 queries with 16 passages, 16 sequences, and 16 answers over two cached pieces each."""
    rng = np.random.default_rng(0)
    rows = packed(rng, 3)
    pool = (rows.segments > 0) & (rows.positions > 0)  # the first token stands for an instruction
    slots = np.arange(ROWS) * 3
    embedding = EmbeddingBatch(
        rows, pool, slots, np.stack([slots + 1, slots + 2], 1).reshape(-1), 3
    )

    text = packed(rng, 2)
    targets = ((text.segments > 0) & (text.positions > 1)).astype(np.float32)
    sequence = np.where(text.segments > 0, np.arange(ROWS)[:, None] * 2 + text.segments - 1, 0)
    generative = GenerativeBatch(text, targets, sequence.astype(np.int32), 2 * ROWS)

    pieces, reading = packed(rng, 4), packed(rng, 2)
    each = (LENGTH - 1) // 4
    owner = np.where(pieces.segments > 0, (pieces.segments + 1) // 2, 0)
    places = pieces.positions + np.where(pieces.segments % 2 == 0, each, 0) * (pieces.segments > 0)
    reading = Rows(
        reading.tokens, reading.positions + 2 * each * (reading.segments > 0), reading.segments
    )
    answers = ((reading.segments > 0) & (reading.positions > 2 * each + 1)).astype(np.float32)
    cached = CachedBatch(
        pieces,
        owner,
        places,
        GenerativeBatch(reading, answers, sequence.astype(np.int32), 2 * ROWS),
    )
    return Batch(embedding, generative, cached)


@pytest.fixture(scope="session")
def devices():
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices")
    return jax.devices()[:8]
