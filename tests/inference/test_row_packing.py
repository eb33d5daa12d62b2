"""Texts in rows and rows in batches: every text once, within its row, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, batch_shapes, bucket, pack_rows


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


def test_a_bucket_is_one_of_few_sizes_with_little_padding():
    sizes = [bucket(n) for n in range(1, 20_000)]
    assert sizes == sorted(sizes) and set(sizes) == {bucket(size) for size in sizes}
    assert len(set(sizes)) < 30
    padding = {n: (size - n) / size for n, size in enumerate(sizes, 1)}
    assert all(padding[n] < 0.2 for n in range(513, 20_000))
    assert all(padding[n] < 1 / 3 for n in range(257, 513))
    assert all(size % 128 == 0 for size in sizes if size > 256)


@pytest.mark.parametrize("row_multiple", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_batches_divide_among_the_row_shards_and_hold_about_the_tokens_of_a_call(
    seed, row_multiple
):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 700, size=rng.integers(1, 200)).tolist()
    batches = pack_rows(lengths, 2048, row_multiple)
    held = [text for batch in batches for row in batch.texts for text in row]
    assert sorted(held) == list(range(len(lengths)))
    for batch in batches:
        assert batch.rows % row_multiple == 0 and 1 <= len(batch.texts) <= batch.rows
        assert batch.rows * batch.length <= 2048 + row_multiple * batch.length
        assert all(sum(lengths[text] for text in row) <= batch.length for row in batch.texts)


def test_short_texts_fill_the_rows_of_long_ones():
    """200 leaves 56 tokens of its row of 256, which the two others take; 300 stands in 384."""
    (batch,) = pack_rows([200, 30, 26], 1024)
    assert batch.texts == [[0, 1, 2]] and batch.length == 256
    assert {len(row) for batch in pack_rows([200, 30, 27], 1024) for row in batch.texts} == {1, 2}


def test_no_texts_are_no_batches():
    assert pack_rows([], 1024) == []


@pytest.mark.parametrize("row_multiple", [1, 3, 8])
@pytest.mark.parametrize("longest", [1, 40, 128, 129, 256, 257, 300, 700, 1100])
def test_all_shapes_of_batches_are_listed(longest, row_multiple):
    """Whatever texts of up to `longest` tokens come together: few and many, short and long."""
    rng = np.random.default_rng(longest)
    for tokens_per_call in (64, 256, 1000, 2048):
        shapes = batch_shapes(longest, tokens_per_call, row_multiple)
        assert len(set(shapes)) == len(shapes) < 80
        lists = [[n] for n in range(1, longest + 1)]
        for _ in range(60):
            count, most = rng.integers(1, rng.choice([4, 20, 200])), rng.integers(1, longest + 1)
            lists.append(rng.integers(1, most + 1, count).tolist())
        packed = {
            (batch.rows, batch.length)
            for lengths in lists
            for batch in pack_rows(lengths, tokens_per_call, row_multiple)
        }
        assert packed <= set(shapes), (tokens_per_call, packed - set(shapes))


def test_shapes_that_are_listed_are_seldom_in_vain():
    """Each is a program to compile: of those listed, random lists of texts use nearly all."""
    rng = np.random.default_rng(0)
    shapes = batch_shapes(300, 2048)
    packed = set()
    for _ in range(2000):
        lengths = rng.integers(1, rng.integers(2, 302), rng.integers(1, 40)).tolist()
        packed |= {(batch.rows, batch.length) for batch in pack_rows(lengths, 2048)}
    assert packed == set(shapes)
