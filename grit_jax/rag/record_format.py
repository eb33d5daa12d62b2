"""A document's record as bytes: a header that describes it, then its arrays layer by layer.

    magic (8) | header length (4) | CRC-32 of header and tokens (4) | header (JSON) | token ids |
    zeros to a multiple of 64 | layer 0: array, array, ..., zeros to a multiple of 8 | layer 1: ...

Plain records have the arrays `k` `[K H T]` and `v` `[K T H]`, the axis order of the cache; packed
ones have those of their codec. Numbers are little-endian. Each layer has a checksum of its own, so
that it can be read, checked and used while the next one is being loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import ml_dtypes
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import Codec, PackedRecord, token_axes
from grit_jax.types import DocumentKV

FORMAT_VERSION = 3
MAGIC = b"GRITKV3\n"
PREFIX = struct.Struct("<8sII")
ALIGNMENT, LAYER_ALIGNMENT = 64, 8
NATIVE = "native"  # keys and values in the dtype of the computation
DTYPES = {
    dtype.name: dtype
    for dtype in map(
        np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16, np.uint8, np.uint16, np.uint32)
    )
}


class RecordError(GritError):
    """A record that cannot be used: absent, damaged, or another model's.

    Attributes:
      key: of the record.
    """

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


@dataclasses.dataclass(frozen=True)
class RecordIdentity:
    """Everything that a record depends on except the document's tokens.

    Attributes:
      weights: `GritLM.weights_hash`, which covers the configuration.
      chat: the strings of the chat format.
      attention: the mode of the encoding pass.
      compression: of keys and values: `native`, or a codec's name, version and calibration.
    """

    weights: str
    chat: tuple[tuple[str, str], ...]
    attention: str
    compression: str = NATIVE
    format: int = FORMAT_VERSION

    @classmethod
    def of(cls, model: GritLM, compression: str = NATIVE) -> RecordIdentity:
        """The identity of records that `model` makes."""
        chat = tuple(sorted(dataclasses.asdict(model.chat).items()))
        return cls(model.weights_hash, chat, model.mode.value, compression)

    def to_json(self) -> dict[str, Any]:
        """In the form of manifests."""
        return {**dataclasses.asdict(self), "chat": dict(self.chat)}

    def to_header(self) -> dict[str, Any]:
        """In the form of records' headers: the chat format as a hash."""
        return {
            **dataclasses.asdict(self),
            "chat": _digest(json.dumps(dict(self.chat)).encode())[:16],
        }

    def difference(self, other: dict[str, Any]) -> str | None:
        """How `other` (from `to_json` or `to_header`) differs, for an error message, or None."""
        own = self.to_json() if isinstance(other.get("chat"), dict) else self.to_header()
        names = {
            "format": "another version of the format",
            "weights": "another model (its weights differ)",
            "chat": "another chat format",
            "attention": "another attention mode",
            "compression": (
                f"another compression ({other.get('compression')}, not {self.compression})"
            ),
        }
        return next((text for name, text in names.items() if other.get(name) != own[name]), None)


def document_key(tokens: Sequence[int], identity: RecordIdentity) -> str:
    """The record's name: SHA-256 over the token ids and everything in `identity`, hexadecimal."""
    return _digest(_identity_bytes(identity) + b"\0" + np.asarray(tokens, "<i4").tobytes())


@functools.lru_cache(maxsize=8)
def _identity_bytes(identity: RecordIdentity) -> bytes:
    return json.dumps(identity.to_json(), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True)
class RecordHeader:
    """How a record's bytes are laid out, read from its header and checked against its identity.

    Attributes:
      arrays: name, dtype and shape of the arrays of a layer, in order.
      checksums: CRC-32 of each layer.
      start: offset of layer 0.
    """

    tokens: np.ndarray
    arrays: tuple[tuple[str, np.dtype, tuple[int, ...]], ...]
    checksums: tuple[int, ...]
    start: int

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.checksums)

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer, padding included."""
        size = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in self.arrays)
        return size + -size % LAYER_ALIGNMENT

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return self.start + self.layers * self.layer_bytes


def encode_record(document: DocumentKV | PackedRecord, identity: RecordIdentity) -> bytes:
    """The record of a document.

    Raises:
      ValueError: arrays that do not belong together, or not to this compression.
    """
    arrays = document.arrays
    if (identity.compression == NATIVE) != (document.codec is None):
        raise ValueError(f"compression {identity.compression!r} of a {type(document).__name__}")
    T, L = len(document.tokens), len(next(iter(arrays.values())))
    axes = token_axes(document.codec)
    for name, array in arrays.items():
        if len(array) != L or array.shape[1 + axes[name]] != T or array.dtype.name not in DTYPES:
            raise ValueError(f"{T} tokens, {L} layers, array {name} {array.dtype}{array.shape}")
    layers = [
        b"".join(np.ascontiguousarray(array[layer]).tobytes() for array in arrays.values())
        for layer in range(L)
    ]
    layers = [layer + bytes(-len(layer) % LAYER_ALIGNMENT) for layer in layers]
    ids = np.asarray(document.tokens)
    ids = ids.astype("<u2" if ids.max(initial=0) < 1 << 16 else "<u4")
    header = json.dumps(
        {
            **identity.to_header(),
            "tokens": T,
            "token_type": ids.dtype.name,
            "arrays": [[name, array.dtype.name, array.shape[1:]] for name, array in arrays.items()],
            "crc32": [zlib.crc32(layer) for layer in layers],
        },
        separators=(",", ":"),
    ).encode()
    described = header + ids.tobytes()
    prefix = PREFIX.pack(MAGIC, len(header), zlib.crc32(described))
    return b"".join(
        [prefix, described, bytes(-(len(prefix) + len(described)) % ALIGNMENT), *layers]
    )


def read_header(blob: bytes, key: str, identity: RecordIdentity, name: str) -> RecordHeader:
    """Reads the beginning of a record.

    Args:
      blob: the record, or its beginning (as much as header and tokens take).
      key, identity: that the record must have.
      name: of the document, for messages.

    Raises:
      RecordError: not a record, damaged, or not the record asked for; the message names the
        document.
    """
    if len(blob) < PREFIX.size:
        raise RecordError(key, f"{name}: its record is cut short ({len(blob)} bytes)")
    magic, length, crc = PREFIX.unpack_from(blob)
    if magic != MAGIC:
        raise RecordError(
            key, f"{name}: its record is damaged (it does not begin as one of this version)"
        )
    try:
        header = json.loads(blob[PREFIX.size : PREFIX.size + length])
        dtype = DTYPES[header["token_type"]]
        end = PREFIX.size + length + header["tokens"] * dtype.itemsize
        described = blob[PREFIX.size : end]
    except (ValueError, KeyError, TypeError):
        raise RecordError(key, f"{name}: its record is damaged (header)") from None
    if zlib.crc32(described) != crc:
        raise RecordError(key, f"{name}: its record is damaged (checksum of the header)")
    difference = identity.difference(header)
    if difference is not None:
        raise RecordError(
            key, f"{name}: its record was made by {difference}; index it again with this model"
        )
    tokens = np.frombuffer(described, dtype, offset=length).astype(np.int32)
    if document_key(tokens, identity) != key:
        raise RecordError(key, f"{name}: its record is that of another document")
    arrays = tuple((array, DTYPES[dtype], tuple(shape)) for array, dtype, shape in header["arrays"])
    return RecordHeader(tokens, arrays, tuple(header["crc32"]), end + -end % ALIGNMENT)


class RecordBody:
    """The arrays of a record, filled layer by layer in any order."""

    def __init__(self, header: RecordHeader, key: str, name: str):
        self.header, self.key, self._name = header, key, name
        self.arrays = {
            array: np.empty((header.layers, *shape), dtype) for array, dtype, shape in header.arrays
        }

    def fill(self, first: int, data: bytes) -> None:
        """Fills in the bytes of whole layers, from layer `first` on.

        Raises:
          RecordError: damaged, or cut short.
        """
        view, size = memoryview(data), self.header.layer_bytes
        for n in range(len(data) // size):
            layer, part = first + n, view[n * size : (n + 1) * size]
            if zlib.crc32(part) != self.header.checksums[layer]:
                raise RecordError(
                    self.key, f"{self._name}: its record is damaged (checksum of layer {layer})"
                )
            offset = 0
            for array, dtype, shape in self.header.arrays:
                count = math.prod(shape)
                numbers = np.frombuffer(part, dtype, count, offset)
                self.arrays[array][layer] = numbers.reshape(shape)
                offset += count * dtype.itemsize

    def document(self, codec: Codec | None) -> DocumentKV | PackedRecord:
        """The document, once every layer is filled in."""
        if codec is None:
            return DocumentKV(self.header.tokens, self.arrays["k"], self.arrays["v"])
        return PackedRecord(self.header.tokens, self.arrays, codec)


@dataclasses.dataclass
class StreamedRecord:
    """A long record (see `KVRecord`) that is read in parts of `layers_per_part` layers each."""

    tokens: np.ndarray
    codec: Codec | None
    body: RecordBody
    layers_per_part: int
    parts: list[Future[None]]

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """Waits for the arrays of a layer.

        Raises:
          RecordError: it cannot be read, or is damaged.
        """
        self.parts[layer // self.layers_per_part].result()
        return {name: array[layer] for name, array in self.body.arrays.items()}

    def whole(self) -> DocumentKV | PackedRecord:
        """Waits for the whole document; errors as `layer`."""
        for part in self.parts:
            part.result()
        return self.body.document(self.codec)


def decode_record(
    blob: bytes, key: str, identity: RecordIdentity, name: str, codec: Codec | None = None
) -> DocumentKV | PackedRecord:
    """The document in a whole record.

    Args:
      codec: that its arrays are packed with; None for a plain one.

    Raises:
      RecordError: as `read_header`, a damaged layer, or a length other than the header's.
    """
    header = read_header(blob, key, identity, name)
    if len(blob) != header.size:
        raise RecordError(
            key, f"{name}: its record is cut short ({len(blob)} of {header.size} bytes)"
        )
    body = RecordBody(header, key, name)
    body.fill(0, memoryview(blob)[header.start :])
    return body.document(codec)
