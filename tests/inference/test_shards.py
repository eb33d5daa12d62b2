"""A shard's bytes: read as they were written, equal for equal contents, and never read damaged."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.inference.shards import DamagedShard, EncodedRecord, Shard


@pytest.fixture
def shard() -> Shard:
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    records = {"k": EncodedRecord(2, b"first"), "l": EncodedRecord(4, b"second" * 9)}
    return Shard(vectors, [2, 4, 2], [1], ["k", "l", "k"], records)


def test_what_is_written_is_read(shard):
    read = Shard.from_bytes(shard.to_bytes())
    np.testing.assert_array_equal(read.vectors, shard.vectors)
    assert (read.lengths, read.truncated, read.keys) == ([2, 4, 2], [1], ["k", "l", "k"])
    assert read.records == shard.records and read.to_bytes() == shard.to_bytes()
    plain = Shard(shard.vectors[:0], [], [])
    assert Shard.from_bytes(plain.to_bytes()).vectors.shape == (0, 5)


def test_damaged_bytes_are_refused_wherever_they_are(shard):
    data = shard.to_bytes()
    for size in (0, 3, 11, 40, len(data) - 1):
        with pytest.raises(DamagedShard):
            Shard.from_bytes(data[:size])
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(DamagedShard):
            Shard.from_bytes(bytes(changed))
