"""Rows in chunks."""

from __future__ import annotations

import dataclasses

import numpy as np

from grit_jax.training.step_config import CHUNKS, StepConfig, in_chunks


def test_rows_in_chunks_and_empty_ones_at_the_end():
    rows = {"tokens": np.arange(10).reshape(5, 2), "mask": np.ones((5, 2), bool)}
    chunks = in_chunks(rows, 2)
    assert chunks["tokens"].shape == (3, 2, 2)
    np.testing.assert_array_equal(np.asarray(chunks["tokens"]).reshape(6, 2)[:5], rows["tokens"])
    assert not np.asarray(chunks["mask"])[2, 1].any()


def test_every_kind_of_rows_has_a_chunk():
    assert {field.name for field in dataclasses.fields(StepConfig)} >= set(CHUNKS)
