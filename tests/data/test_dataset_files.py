"""Shards that this package writes, read by tfds."""

from __future__ import annotations

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from grit_jax.data.dataset_files import SPLIT, shard_path, write_dataset_info, write_shard


def test_tfds_reads_what_was_written(tmp_path, capsys):
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    records = [(f"line {n} é".encode(), f"file:{n}") for n in range(7)]
    parts = [records[:4], records[4:5], records[5:]]
    size = sum(write_shard(shard_path(folder, i, 3), part) for i, part in enumerate(parts))
    write_dataset_info(folder, [len(part) for part in parts], size)
    builder = tfds.builder_from_directory(str(folder))
    assert builder.info.splits[SPLIT].num_examples == 7 and size > 7 * 20
    source = builder.as_data_source(split=SPLIT)
    assert [(source[i]["line"], source[i]["where"].decode()) for i in range(7)] == records
    assert capsys.readouterr().out == ""


def test_the_keys_of_a_record_are_sorted(tmp_path):
    """Protobuf's own order differs from process to process, and with it the bytes of a file."""
    write_shard(tmp_path / "shard", [(b"first", "file:1")] * 3)
    for record in ArrayRecordReader(str(tmp_path / "shard")).read_all():
        assert record.index(b"line") < record.index(b"where")


def test_a_shard_appears_whole(tmp_path):
    def records():
        yield b"line", "file:1"
        raise KeyboardInterrupt

    path = shard_path(tmp_path, 0, 1)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, records())
    assert not path.exists()
    write_shard(path, [(b"line", "file:1")])
    assert path.exists() and len(list(tmp_path.iterdir())) == 1
