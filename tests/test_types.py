"""Batches and results as JAX sees them: which fields are arrays, and which are compiled into the
program."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.types import (
    KV,
    AttentionMode,
    Batch,
    EmbeddingBatch,
    GenerativeBatch,
    ModelOutput,
    Rows,
)


def rows(**more) -> Rows:
    """Two rows of four tokens."""
    tokens = np.arange(8).reshape(2, 4)
    return Rows(tokens=tokens, positions=tokens % 4, segments=np.ones_like(tokens), **more)


def embedding_batch(**more) -> EmbeddingBatch:
    return EmbeddingBatch(
        rows(), np.ones((2, 4), bool), queries=np.array([0]), passages=np.array([1, 3]), **more
    )


def test_parts_that_are_absent_are_no_leaves():
    assert len(jax.tree.leaves(rows())) == 3
    assert len(jax.tree.leaves(rows(blocks=np.zeros((2, 4), np.int32)))) == 4
    assert jax.tree.leaves(Batch()) == []
    whole = Batch(embedding_batch(), GenerativeBatch(rows(), np.ones((2, 4)), np.zeros((2, 4))))
    assert len(jax.tree.leaves(whole)) == 6 + 5
    assert jax.tree.map(lambda x: x, whole).cached is None


@pytest.mark.parametrize(
    "change, compiled_again",
    [
        ({}, False),
        ({"queries": np.array([2])}, False),
        ({"segments_per_row": 3}, True),
        ({"query_rows": 1}, True),
        ({"positives": 2}, True),
        ({"texts": np.array([0, 1])}, True),
    ],
)
def test_sizes_are_static_and_arrays_are_not(change, compiled_again):
    """A batch of other sizes is another program; one of other numbers is the same."""
    traced = []

    @jax.jit
    def program(batch):
        traced.append((batch.segments_per_row, batch.query_rows, batch.positives))
        return batch.queries.sum()

    program(embedding_batch(segments_per_row=2))
    program(dataclasses.replace(embedding_batch(segments_per_row=2), **change))
    assert len(traced) == 1 + compiled_again
    assert all(isinstance(size, int) for sizes in traced for size in sizes)


def test_a_path_of_a_leaf_names_its_field():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(rows())]
    assert paths == [".tokens", ".positions", ".segments"]
    cache = KV(np.zeros((1, 1, 2, 3, 4)), np.zeros((1, 1, 2, 4, 3)))
    assert jax.tree.map(jnp.shape, cache) == KV((1, 1, 2, 3, 4), (1, 1, 2, 4, 3))


def test_logits_are_made_once_and_only_when_asked_for():
    calls = []

    def head(hidden):
        calls.append(hidden.shape)
        return hidden @ jnp.ones((3, 5))

    output = ModelOutput(jnp.ones((1, 2, 3)), head=head)
    assert not calls
    np.testing.assert_array_equal(output.logits, np.full((1, 2, 5), 3.0))
    assert output.logits is output.logits and calls == [(1, 2, 3)]


def test_an_output_inside_a_program_has_no_logits():
    with pytest.raises(AttributeError, match=r"no logits; call Transformer.logits\(hidden\)"):
        _ = ModelOutput(jnp.ones((1, 2, 3))).logits


def test_a_mode_is_known_by_its_name():
    assert [mode.value for mode in AttentionMode] == ["bidirectional", "causal", "prefix"]
    assert AttentionMode("prefix") is AttentionMode.PREFIX
    with pytest.raises(ValueError):
        AttentionMode("both")
