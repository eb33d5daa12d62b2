"""Packed rows to vectors against the dense pass of each text by itself."""

from __future__ import annotations

import dataclasses

import dense_reference as dense
import jax
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.models.embedding import embed_rows
from grit_jax.models.parameters import parameter_shapes
from grit_jax.models.transformer import Transformer
from grit_jax.types import AttentionMode, Rows

BIDIRECTIONAL, CAUSAL, PREFIX = (
    AttentionMode.BIDIRECTIONAL,
    AttentionMode.CAUSAL,
    AttentionMode.PREFIX,
)
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    dtype="float32",
    remat="none",
    scan_layers=False,
)
LENGTHS = [[5, 3], [7], [2, 2, 4]]  # of the texts of each row
INSTRUCTION = 1  # token of each text that mean pooling leaves out
T = 9


def packed_rows() -> Rows:
    rng = np.random.default_rng(0)
    rows = Rows(*(np.zeros((len(LENGTHS), T), np.int32) for _ in range(4)))
    for b, lengths in enumerate(LENGTHS):
        start = 0
        for number, n in enumerate(lengths, 1):
            here = slice(start, start + n)
            rows.tokens[b, here] = rng.integers(0, CONFIG.vocab_size, n)
            rows.positions[b, here], rows.segments[b, here] = np.arange(n), number
            rows.blocks[b, start : start + n] = np.arange(n) >= INSTRUCTION
            start += n
    return rows


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    weights = {
        name: (name.endswith("_norm") + 0.3 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in parameter_shapes(CONFIG).items()
    }
    weights["embedding_projection"] = rng.normal(size=(16, 6)).astype(np.float32)
    weights["embedding_projection_bias"] = rng.normal(size=6).astype(np.float32)
    return weights


def plain(params):
    """Without the projection."""
    return {name: w for name, w in params.items() if not name.startswith("embedding")}


def embed(weights, rows, mask, **options):
    @jax.jit
    def run(weights, rows, mask):
        model = Transformer(CONFIG, plain(weights))
        return embed_rows(model, weights, rows, mask, segments_per_row=4, **options)

    return run(weights, rows, mask)


@pytest.mark.parametrize(
    "mode, pooling", [(BIDIRECTIONAL, "mean"), (CAUSAL, "lasttoken"), (BIDIRECTIONAL, "cls")]
)
def test_each_segment_has_the_vector_of_its_text_alone(params, mode, pooling):
    rows, weights = packed_rows(), plain(params)
    rows = dataclasses.replace(rows, blocks=None)
    mask = (rows.segments > 0) & (rows.positions >= INSTRUCTION)
    found = embed(weights, rows, mask, mode=mode, pooling=pooling)
    assert found.kv is None and found.vectors.shape == (3, 4, 16)
    for b, lengths in enumerate(LENGTHS):
        for number, _ in enumerate(lengths, 1):
            ids = rows.tokens[b, rows.segments[b] == number]
            expected = dense.embedding(weights, CONFIG, ids, INSTRUCTION, pooling, mode.value)
            np.testing.assert_allclose(found.vectors[b, number - 1], expected, atol=1e-5)
        np.testing.assert_array_equal(found.vectors[b, len(lengths) :], 0)  # absent segments


def test_the_projection_is_that_of_the_weights_given_and_records_are_returned(params):
    """The average of the tokens goes through it; its own module is no part of the transformer."""
    rows = dataclasses.replace(packed_rows(), blocks=None)
    mask = rows.segments > 0
    found = embed(params, rows, mask, mode=BIDIRECTIONAL, pooling="mean", return_kv=True)
    model = Transformer(CONFIG, plain(params))
    marks = rows.tokens, rows.positions, rows.segments
    out = jax.jit(lambda: model(*marks, mode=BIDIRECTIONAL, return_kv=True))()
    for b, number in ((0, 1), (0, 2), (1, 1), (2, 3)):
        mean = np.asarray(out.hidden[b], np.float64)[rows.segments[b] == number].mean(0)
        vector = mean @ params["embedding_projection"] + params["embedding_projection_bias"]
        expected = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(found.vectors[b, number - 1], expected, atol=1e-5)
    np.testing.assert_allclose(found.kv.k, out.kv.k, atol=1e-6)
    np.testing.assert_allclose(found.kv.v, out.kv.v, atol=1e-6)


def test_blocks_reach_the_attention(params):
    """With a prefix mask the instruction is causal and the text bidirectional."""
    rows, weights = packed_rows(), plain(params)
    mask = (rows.segments > 0) & (rows.positions >= INSTRUCTION)
    found = embed(weights, rows, mask, mode=PREFIX, pooling="mean")
    ids = rows.tokens[1, rows.segments[1] == 1]
    expected = dense.embedding(weights, CONFIG, ids, INSTRUCTION, "mean", "prefix")
    np.testing.assert_allclose(found.vectors[1, 0], expected, atol=1e-5)
