"""A document's record as bytes: a header that describes it, then keys and values layer by layer.

    magic (8) | header length (4) | CRC-32 of the header (4) | header (JSON) | zeros to a multiple of 64 |
    layer 0: keys [T K H], values [T K H] | layer 1: ...

Numbers are little-endian. Each layer has a checksum of its own, so that it can be read, checked and used before the
next one has come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from grit_jax.inference.model import GritLM
from grit_jax.types import DocumentKV, GritError

FORMAT_VERSION = 1
MAGIC = b"GRITKV1\n"
PREFIX = struct.Struct("<8sII")
ALIGNMENT = 64
NATIVE = "native"  # keys and values in the type in which the model computed them
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class RecordError(GritError):
    """A record that must not be used: absent, damaged, or another model's. `key` says which."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


@dataclasses.dataclass(frozen=True)
class RecordIdentity:
    """What a record depends on beside the document's tokens.

    Attributes:
      weights: `GritLM.weights_hash`, which covers the configuration.
      chat: the strings of the chat format.
      attention: the mode of the encoding pass.
      compression: how keys and values are written.
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
        """As it is written into headers and manifests."""
        return {**dataclasses.asdict(self), "chat": dict(self.chat)}

    def difference(self, other: dict[str, Any]) -> str | None:
        """How `other` (from `to_json`) differs, in words for the person; None where it does not."""
        names = {
            "format": "another version of the format",
            "weights": "another model (its weights differ)",
            "chat": "another chat format",
            "attention": "another attention mode",
            "compression": "another compression",
        }
        mine = self.to_json()
        return next((what for name, what in names.items() if other.get(name) != mine[name]), None)


def document_key(tokens: Sequence[int], identity: RecordIdentity) -> str:
    """The record's name: SHA-256 over the token ids and everything in `identity`, hexadecimal."""
    what = json.dumps(identity.to_json(), sort_keys=True).encode()
    return hashlib.sha256(what + b"\0" + np.asarray(tokens, "<i4").tobytes()).hexdigest()


def encode_record(document: DocumentKV, identity: RecordIdentity) -> bytes:
    """The record of a document.

    Raises:
      ValueError: arrays that do not belong together, or a compression that is not written here.
    """
    k, v = np.asarray(document.k), np.asarray(document.v)
    if k.shape != v.shape or k.ndim != 4 or k.shape[1] != len(document.tokens) or k.dtype != v.dtype:
        raise ValueError(f"{len(document.tokens)} tokens, keys {k.dtype}{k.shape}, values {v.dtype}{v.shape}")
    if identity.compression != NATIVE or k.dtype.name not in DTYPES:
        raise ValueError(f"compression {identity.compression!r} of {k.dtype}")
    body = np.stack([k, v], axis=1)  # [L 2 T K H]
    layers = [layer.tobytes() for layer in body]
    header = json.dumps(
        {
            **identity.to_json(),
            "key": document_key(document.tokens, identity),
            "tokens": [int(i) for i in document.tokens],
            "shape": list(k.shape),
            "dtype": k.dtype.name,
            "layer_bytes": len(layers[0]) if layers else 0,
            "crc32": [zlib.crc32(layer) for layer in layers],
        },
        separators=(",", ":"),
    ).encode()
    prefix = PREFIX.pack(MAGIC, len(header), zlib.crc32(header))
    return b"".join([prefix, header, bytes(_padding(len(header))), *layers])


def decode_record(blob: bytes, key: str, identity: RecordIdentity, name: str) -> DocumentKV:
    """The document in a record, its arrays views of `blob`.

    Args:
      key, identity: what the record must be.
      name: of the document, for messages.

    Raises:
      RecordError: damaged, cut short, or not the record asked for; the message names the document.
    """
    header = read_header(blob, key, name)
    difference = identity.difference(header)
    if difference is not None:
        raise RecordError(key, f"{name}: its record was made by {difference}; index it again with this model")
    tokens = np.asarray(header["tokens"], np.int32)
    if header["key"] != key or document_key(tokens, identity) != key:
        raise RecordError(key, f"{name}: its record is that of another document")
    L, T, K, H = header["shape"]
    dtype, size = DTYPES[header["dtype"]], header["layer_bytes"]
    start = PREFIX.size + header["header_bytes"]
    start += _padding(header["header_bytes"])
    if len(blob) != start + L * size or size != 2 * T * K * H * dtype.itemsize or len(tokens) != T:
        raise RecordError(key, f"{name}: its record is cut short ({len(blob)} of {start + L * size} bytes)")
    view = memoryview(blob)
    for layer, crc in enumerate(header["crc32"]):
        a = start + layer * size
        if zlib.crc32(view[a : a + size]) != crc:
            raise RecordError(key, f"{name}: its record is damaged (checksum of layer {layer})")
    body = np.frombuffer(blob, dtype, offset=start).reshape(L, 2, T, K, H)
    return DocumentKV(tokens, body[:, 0], body[:, 1])


def read_header(blob: bytes, key: str, name: str) -> dict[str, Any]:
    """The header of a record, checked, with its length as `header_bytes`.

    Raises:
      RecordError: not a record, or its header is damaged.
    """
    if len(blob) < PREFIX.size:
        raise RecordError(key, f"{name}: its record is cut short ({len(blob)} bytes)")
    magic, length, crc = PREFIX.unpack_from(blob)
    raw = blob[PREFIX.size : PREFIX.size + length]
    if magic != MAGIC or len(raw) != length or zlib.crc32(raw) != crc:
        raise RecordError(key, f"{name}: its record is damaged (header)")
    return {**json.loads(raw), "header_bytes": length}


def _padding(header: int) -> int:
    return -(PREFIX.size + header) % ALIGNMENT
