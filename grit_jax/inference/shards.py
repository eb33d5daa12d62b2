"""A shard: what encoding one block of texts gives, as bytes that any process can join."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

MAGIC = b"GRITSHD1"
DIGEST = 16  # bytes of a hash of all that follows it
_PREFIX = struct.Struct("<8sI")  # magic, bytes of the header


class DamagedShard(Exception):
    """The bytes are no shard, or were changed."""


@dataclasses.dataclass(frozen=True)
class EncodedRecord:
    """A document's record as bytes, and how many tokens it has."""

    tokens: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """The results of a block, in the order of its texts.

    Attributes:
      vectors: unit vectors.
      lengths: tokens of each text.
      truncated: numbers of the texts that lost their end.
      keys: of each text's record; empty if there are no records.
      records: the records by key, each once.
    """

    vectors: Float[np.ndarray, "N D"]
    lengths: list[int]
    truncated: list[int]
    keys: list[str] = dataclasses.field(default_factory=list)
    records: Mapping[str, EncodedRecord] = dataclasses.field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The shard as bytes; equal shards have equal bytes."""
        vectors = np.ascontiguousarray(self.vectors, "<f4").tobytes()
        payload = [vectors, *(record.data for record in self.records.values())]
        header = json.dumps(
            {
                "shape": self.vectors.shape,
                "lengths": self.lengths,
                "truncated": self.truncated,
                "keys": self.keys,
                "records": [[key, r.tokens, len(r.data)] for key, r in self.records.items()],
            },
            separators=(",", ":"),
        ).encode()
        digest = hashlib.blake2b(header, digest_size=DIGEST)
        for part in payload:
            digest.update(part)
        return b"".join([_PREFIX.pack(MAGIC, len(header)), digest.digest(), header, *payload])

    @classmethod
    def from_bytes(cls, data: bytes) -> Shard:
        """Reads what `to_bytes` wrote.

        Raises:
          DamagedShard: the bytes are something else.
        """
        try:
            magic, size = _PREFIX.unpack_from(data)
            start = _PREFIX.size + DIGEST
            contents = memoryview(data)[start:]
            digest = hashlib.blake2b(contents, digest_size=DIGEST).digest()
            if magic != MAGIC or digest != data[_PREFIX.size : start]:
                raise DamagedShard
            header, payload = json.loads(bytes(contents[:size])), contents[size:]
            count = int(np.prod(header["shape"]))
            vectors = np.frombuffer(payload, "<f4", count).reshape(header["shape"])
            records, end = {}, count * 4
            for key, tokens, length in header["records"]:
                records[key] = EncodedRecord(tokens, bytes(payload[end : end + length]))
                end += length
            return cls(vectors, header["lengths"], header["truncated"], header["keys"], records)
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise DamagedShard from error
