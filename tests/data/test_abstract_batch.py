"""The largest batch of a configuration: every text at its limit, as shapes alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.data.abstract_batch import abstract_batch
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.errors import GritError


def test_the_largest_batch_holds_every_text_at_its_limit():
    config = DataConfig(
        embedding=["a"],
        generative=["b"],
        cached=["c"],
        embedding_batch=8,
        generative_batch=3,
        cached_batch=2,
        group_size=2,
        query_max_length=128,
        passage_max_length=512,
        generative_max_length=256,
        document_max_length=300,
        row_multiple=2,
    )
    batch = abstract_batch(config)
    assert batch.embedding.rows.tokens.shape == (
        18,
        512,
    )  # 16 passages, and 4 queries in each of two more rows
    assert batch.embedding.queries.shape == (8,) and batch.embedding.passages.shape == (16,)
    assert batch.generative.rows.tokens.shape == (4, 256)
    assert batch.cached.cached_texts.tokens.shape == (
        2,
        428,
    ) and batch.cached.text.rows.tokens.shape == (
        2,
        256,
    )
    assert batch.generative.targets.dtype == np.float32 and batch.embedding.pool.dtype == bool


def test_rows_of_a_teacher():
    config = DataConfig(
        cached=["c"],
        cached_batch=3,
        document_max_length=300,
        query_max_length=100,
        generative_max_length=256,
        row_multiple=2,
    )
    needs = BatchNeeds(teacher_rows=True)
    teacher = abstract_batch(config, needs).cached.teacher
    assert teacher.rows.tokens.shape == (4, 400 + 256) and teacher.columns.shape == (4, 256)
    short = abstract_batch(dataclasses.replace(config, teacher_row_length=200), needs).cached
    assert short.teacher.rows.tokens.shape == (4, 200) and short.text.targets.shape == (4, 256)
    assert short.text.max_targets == 224  # 199, rounded up


def test_shapes_are_made_without_reading_data():
    """The files do not exist; a kind without a batch size has no part in the batch."""
    config = DataConfig(generative=["nowhere.jsonl"], generative_batch=2, generative_max_length=32)
    batch = abstract_batch(config)
    leaves = jax.tree.leaves(batch)
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert batch.embedding is None and batch.cached is None
    with pytest.raises(GritError, match="every batch size is 0"):
        abstract_batch(DataConfig())


def test_what_a_run_needs_of_its_batches():
    """Teacher scores are one number a passage, the first rows hold queries alone."""
    config = DataConfig(
        embedding=["a"],
        embedding_batch=8,
        group_size=3,
        positives_per_query=2,
        query_max_length=64,
        passage_max_length=64,
    )
    plain = abstract_batch(config).embedding
    assert plain.scores is None and plain.rows.tokens.shape == (8 + 8 * 4, 64)
    needs = BatchNeeds(separate_sides=True, teacher_scores=True)
    embedding = abstract_batch(config, needs).embedding
    assert embedding.passages.shape == embedding.scores.shape == (8 * 4,)
    assert embedding.rows.tokens.shape == (8 + 8 * 4, 64) and embedding.query_rows == 8


def test_rows_of_preference_examples():
    """The two texts of a pair share a row; KTO has mismatched texts beside its own."""
    config = DataConfig(preference=["a"], preference_batch=5, preference_max_length=64)
    pairs = abstract_batch(config, BatchNeeds(preference="dpo")).preference
    assert pairs.text.targets.shape == (8, 128) and pairs.text.sequences == 10
    assert pairs.desirable is None and pairs.mismatched is None
    single = abstract_batch(config).preference
    assert single.text.targets.shape == single.mismatched.targets.shape == (8, 64)
    assert single.desirable.shape == (5,) and single.text.max_targets == 64
