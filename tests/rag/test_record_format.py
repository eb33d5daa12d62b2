"""The bytes of a record: where each layer stands, and that nothing damaged or strange is read."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from stored_records import DOCUMENTS, IDENTITY, assert_same

from grit_jax.rag.record_format import (
    PREFIX,
    RecordError,
    decode_record,
    document_key,
    encode_record,
    read_header,
)
from grit_jax.types import DocumentKV


def test_special_numbers_and_bfloat16_survive():
    k = np.array([np.nan, -0.0, np.inf, 1e-45, 1.7e38, 1.0], np.float32).reshape(3, 1, 2, 1)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        document = DocumentKV(
            np.array([5], np.int32), k.astype(dtype), (2 * k).swapaxes(2, 3).astype(dtype)
        )
        key = document_key(document.tokens, IDENTITY)
        assert_same(decode_record(encode_record(document, IDENTITY), key, IDENTITY, "d"), document)


def test_a_layer_can_be_read_by_itself():
    """Layer-major bytes: K then V of layer i lie together head by head, at a place that the header
    gives."""
    document = DOCUMENTS[2]
    blob = encode_record(document, IDENTITY)
    header = read_header(blob, document_key(document.tokens, IDENTITY), IDENTITY, "d")
    start, size = header.start, header.layer_bytes
    assert start % 64 == 0 and len(blob) == header.size == start + 3 * size
    for layer in range(3):
        part = np.frombuffer(blob[start + layer * size : start + (layer + 1) * size], np.float32)
        np.testing.assert_array_equal(part[:160].reshape(1, 4, 40), document.k[layer])
        np.testing.assert_array_equal(part[160:].reshape(1, 40, 4), document.v[layer])
    assert header.tokens.tolist() == list(range(10, 50)) and b'"attention":"bidirectional"' in blob


def test_a_key_depends_on_everything():
    changes = {
        "weights": "w2",
        "attention": "causal",
        "compression": "int8-1-x",
        "format": 1,
        "chat": (("bos", "x"),),
    }
    others = [dataclasses.replace(IDENTITY, **{name: value}) for name, value in changes.items()]
    keys = {document_key([1, 2], one) for one in (IDENTITY, *others)} | {
        document_key([2, 1], IDENTITY)
    }
    assert len(keys) == 7
    assert document_key([1, 2], IDENTITY) == document_key(np.array([1, 2]), IDENTITY)


def test_every_changed_byte_is_noticed():
    document = DOCUMENTS[1]
    blob, key = encode_record(document, IDENTITY), document_key(document.tokens, IDENTITY)
    body = read_header(blob, key, IDENTITY, "d").start
    described = len(blob[:body].rstrip(b"\0"))
    places = [*range(0, described, 7), *range(body, len(blob), 11), len(blob) - 1]
    for place in places:
        damaged = bytearray(blob)
        damaged[place] ^= 1
        with pytest.raises(RecordError, match="document 'zeno'"):
            decode_record(bytes(damaged), key, IDENTITY, "document 'zeno'")


def test_a_record_cut_short_or_too_long_is_noticed():
    document = DOCUMENTS[1]
    blob, key = encode_record(document, IDENTITY), document_key(document.tokens, IDENTITY)
    for length in (0, 5, PREFIX.size, 100, len(blob) // 2, len(blob) - 1):
        with pytest.raises(RecordError, match="zeno"):
            decode_record(blob[:length], key, IDENTITY, "zeno")
    with pytest.raises(RecordError, match="zeno"):
        decode_record(blob + b"\0", key, IDENTITY, "zeno")


def test_another_documents_or_models_record_is_not_used():
    blob = encode_record(DOCUMENTS[0], IDENTITY)
    with pytest.raises(RecordError, match="another document"):
        decode_record(blob, document_key(DOCUMENTS[1].tokens, IDENTITY), IDENTITY, "zeno")
    for name, value in (("weights", "w2"), ("attention", "causal"), ("chat", (("bos", ""),))):
        other = dataclasses.replace(IDENTITY, **{name: value})
        with pytest.raises(RecordError, match="zeno.*another"):
            decode_record(blob, document_key(DOCUMENTS[0].tokens, other), other, "zeno")
