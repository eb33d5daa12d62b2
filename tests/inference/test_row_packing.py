"""Texts in rows and rows in batches: every text once, within its row, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, bucket, pack_rows


@pytest.mark.parametrize("seed", range(3))
def test_plan_holds_every_text_once_with_little_padding(seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / 90, size=3000) + 6, 512).tolist()
    calls = pack_rows(lengths, 4096)
    assert sorted(i for call in calls for row in call.texts for i in row) == list(
        range(len(lengths))
    )
    for call in calls:
        assert len(call.texts) <= call.rows
        for row in call.texts:
            assert sum(lengths[i] for i in row) <= call.length
            assert len(row) <= call.length // TOKENS_PER_SEGMENT
    read = sum(call.length * call.rows for call in calls)
    assert sum(lengths) / read > 0.93
    assert len({(call.length, call.rows) for call in calls}) <= 4


def test_plan_of_tiny_texts_respects_the_pooled_width():
    calls = pack_rows([1] * 500, 4096)
    assert all(
        len(row) <= call.length // TOKENS_PER_SEGMENT for call in calls for row in call.texts
    )
    assert sum(len(row) for call in calls for row in call.texts) == 500


def test_one_query_is_one_short_row():
    (call,) = pack_rows([12], 4096)
    assert (call.length, call.rows) == (16, 1)


def test_bucket():
    assert [bucket(n) for n in (1, 64, 65, 200, 257, 400, 513, 1100, 4100)] == [
        64,
        64,
        128,
        256,
        384,
        512,
        640,
        1280,
        5120,
    ]
