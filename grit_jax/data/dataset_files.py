"""A tfds dataset of ArrayRecord files, written shard by shard and without TensorFlow.

Each record is a line of training data and the place that it came from.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAME, SPLIT = "grit_dataset", "train"
VERSION = "1.0.0"


def shard_path(folder: Path, number: int, count: int) -> Path:
    """The file of a shard, as tfds names it."""
    return folder / f"{NAME}-{SPLIT}.array_record-{number:05}-of-{count:05}"


def write_shard(path: Path, records: Iterable[tuple[bytes, str]]) -> int:
    """Writes lines and their places as one shard, whole or not at all; returns its bytes of data.

    Raises:
      OSError: the disk is full or cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    serialize = _serializer()
    temporary = path.with_name(f".{path.name}.tmp")
    size = 0
    # A group of one record: any record is read without its neighbours.
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    for line, place in records:
        data = serialize({"line": line.decode(), "where": place})
        writer.write(data)
        size += len(data)
    writer.close()
    temporary.replace(path)
    return size


def write_dataset_info(folder: Path, lengths: Sequence[int], size: int) -> None:
    """Makes the shards of a folder a dataset that tfds opens.

    Args:
      lengths: records of each shard. size: bytes of all of them.
    """
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=list(lengths), num_bytes=size, filename_template=template
    )
    # tfds prints; stdout belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_features(),
            split_infos=[split],
            version=VERSION,
            filename_template=template,
            check_data=False,
            description="Lines of training data with the place that they came from.",
        )


def _features() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({"line": tfds.features.Text(), "where": tfds.features.Text()})


def _serializer() -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = _features()
    serializer = ExampleSerializer(features.get_serialized_info())

    def serialize(record: dict[str, str]) -> bytes:
        example = serializer.get_tf_example(features.encode_example(record))
        # Otherwise the order of the keys differs from process to process.
        return example.SerializeToString(deterministic=True)

    return serialize
