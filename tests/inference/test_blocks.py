"""Blocks: bounds that follow from the texts alone, and results joined in order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.blocks import (
    BlockJob,
    Joiner,
    block_ranges,
    encode_blocks,
    from_ranges,
    shard_name,
    to_ranges,
)
from grit_jax.inference.shards import Shard
from grit_jax.runtime.blobs import BlobStore


def shard(number: int) -> Shard:
    return Shard(np.full((2, 3), number, np.float32), [1, 1], [])


def job(committed: list, blocks: int, durable: bool, fail_at: int | None = None) -> BlockJob:
    def commit(block, result):
        if block == fail_at:
            raise GritError("no room")
        assert (result.vectors == block).all()
        committed.append(block)

    texts = lambda block: ([f"a{block}", f"b{block}"], ["", ""])
    return BlockJob([shard_name(block) for block in range(blocks)], texts, commit, durable)


def encoder(texts, names):
    return lambda: shard(int(texts[0][1:]))


@pytest.mark.parametrize("sizes", [[], [7], [1] * 50, [9, 1, 9, 1], [3, 5, 2, 8, 8, 1, 1, 30, 2]])
@pytest.mark.parametrize("limit, most", [(8, 100), (1, 3), (100, 4)])
def test_a_range_begins_where_its_items_no_longer_fit(sizes, limit, most):
    blocks = block_ranges(sizes, limit, most)
    assert [number for block in blocks for number in block] == list(range(len(sizes)))
    total = lambda block: sum(sizes[number] for number in block)
    for block, after in zip(blocks, [*blocks[1:], None]):
        assert len(block) == 1 or total(block) <= limit and len(block) <= most
        if after is not None:
            assert total(block) + sizes[after.start] > limit or len(block) == most
    # What is left after some blocks are done has the bounds that it had.
    for done in range(len(blocks)):
        rest = block_ranges(sizes[blocks[done].start :], limit, most)
        assert [len(block) for block in rest] == [len(block) for block in blocks[done:]]


def test_ranges_of_numbers():
    for numbers in ([], [4], [0, 1, 2], [1, 3, 4, 9]):
        assert from_ranges(to_ranges(numbers)) == numbers


def test_a_shards_name_depends_on_where_its_parts_end():
    names = [shard_name(*parts) for parts in (["a", "b"], ["ab"], ["ab", ""], ["a", b"b", 1])]
    assert len(set(names)) == 4 and names[0] == shard_name("a", "b")


def test_a_single_process_commits_each_block_before_the_one_after_next_is_encoded(tmp_path):
    committed, ahead = [], []

    def slow(texts, names):
        ahead.append(int(texts[0][1:]) - len(committed))
        return encoder(texts, names)

    work = job(committed, 6, durable=True)
    with Joiner(work, None) as joiner:
        encode_blocks(range(6), work, slow, joiner.deliver, joiner.check)
    assert committed == list(range(6)) and max(ahead) <= 1


@pytest.mark.parametrize("durable", [True, False])
def test_blocks_that_others_have_encoded_are_joined_in_order(tmp_path, durable):
    """The others' shards come late, in another order, some before the work begins."""
    committed: list[int] = []
    work, store = job(committed, 9, durable), BlobStore(tmp_path / "shards")
    write = lambda block: store.write(work.names[block], shard(block).to_bytes())
    write(4)

    def others():
        for block in (7, 1):
            time.sleep(0.05)
            write(block)

    thread = threading.Thread(target=others)
    thread.start()
    mine = [0, 2, 3, 5, 6, 8]
    with Joiner(work, store, keep=True) as joiner:
        encode_blocks(mine, work, encoder, joiner.deliver, joiner.check)
    thread.join()
    assert committed == list(range(9))
    assert len(store.names()) == (0 if durable else 9)


def test_what_fails_ends_the_work_and_keeps_what_is_committed(tmp_path):
    committed: list[int] = []
    work = job(committed, 6, durable=True, fail_at=3)
    with pytest.raises(GritError, match="no room"), Joiner(work, None) as joiner:
        encode_blocks(range(6), work, encoder, joiner.deliver, joiner.check)
    assert committed == [0, 1, 2]

    def broken(texts, names):
        if texts[0] == "a2":
            raise GritError("not finite")
        return encoder(texts, names)

    committed.clear()
    work = job(committed, 6, durable=True)
    with pytest.raises(GritError, match="not finite"), Joiner(work, None) as joiner:
        encode_blocks(range(6), work, broken, joiner.deliver, joiner.check)
    assert committed == [0, 1], "what was encoded before is not lost"


def test_a_block_that_never_comes_and_a_damaged_one_are_errors(tmp_path):
    work, store = job([], 2, durable=True), BlobStore(tmp_path / "shards")
    with (
        pytest.raises(GritError, match="process 1: lost"),
        Joiner(work, store, failure=lambda block: "process 1: lost" if block == 0 else None),
    ):
        pass
    store.write(work.names[0], shard(0).to_bytes()[:-1])
    with pytest.raises(GritError, match="was damaged and is removed"), Joiner(work, store):
        pass
    assert store.names() == []
