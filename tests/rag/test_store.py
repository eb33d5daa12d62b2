"""The document store: records come back bit by bit or not at all."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from fake_model import document_kv, fake_model

from grit_jax.rag.record import (
    PREFIX,
    RecordError,
    RecordIdentity,
    decode_record,
    document_key,
    encode_record,
    read_header,
)
from grit_jax.rag.store import DocumentStore
from grit_jax.types import DocumentKV, GritError

IDENTITY = RecordIdentity.of(fake_model())
DOCUMENTS = [document_kv(range(10, 10 + n)) for n in (1, 7, 40)]


@pytest.fixture
def store(tmp_path):
    store = DocumentStore.open(tmp_path / "kv", IDENTITY, create=True)
    store.put_many(DOCUMENTS)
    return store


def assert_same(found: DocumentKV, document: DocumentKV):
    np.testing.assert_array_equal(found.tokens, document.tokens)
    for name in ("k", "v"):
        mine, theirs = getattr(found, name), getattr(document, name)
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()


def test_records_come_back_bit_by_bit_in_any_order(store, tmp_path):
    keys = [store.key(d.tokens) for d in DOCUMENTS]
    again = DocumentStore.open(tmp_path / "kv", IDENTITY)
    for order in ([0, 1, 2], [2, 0], [1, 1]):
        for found, i in zip(again.get_many([keys[i] for i in order]), order, strict=True):
            assert_same(found, DOCUMENTS[i])
    assert again.has_many([*keys, "0" * 64]) == [True, True, True, False] and again.has(keys[0])


def test_special_numbers_and_bfloat16_survive():
    k = np.array([np.nan, -0.0, np.inf, 1e-45, 1.7e38, 1.0], np.float32).reshape(3, 1, 1, 2)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        document = DocumentKV(np.array([5], np.int32), k.astype(dtype), (2 * k).astype(dtype))
        key = document_key(document.tokens, IDENTITY)
        assert_same(decode_record(encode_record(document, IDENTITY), key, IDENTITY, "d"), document)


def test_a_layer_can_be_read_by_itself(store):
    """Layer-major bytes: K then V of layer i lie together, at a place that the header gives."""
    document = DOCUMENTS[2]
    blob = encode_record(document, IDENTITY)
    header = read_header(blob, store.key(document.tokens), "d")
    start = -(-(PREFIX.size + header["header_bytes"]) // 64) * 64
    size = header["layer_bytes"]
    for layer in range(3):
        part = np.frombuffer(blob[start + layer * size : start + (layer + 1) * size], np.float32)
        np.testing.assert_array_equal(part.reshape(2, 40, 1, 4)[0], document.k[layer])
        np.testing.assert_array_equal(part.reshape(2, 40, 1, 4)[1], document.v[layer])
    assert header["tokens"] == list(range(10, 50)) and header["attention"] == "bidirectional"


def test_what_is_there_is_not_written_again(store):
    before = store.size
    assert before.records == 3 and before.tokens == 48
    assert before.bytes == sum(len(encode_record(d, IDENTITY)) for d in DOCUMENTS) == store.bytes_used
    keys = store.put_many([DOCUMENTS[0], document_kv([1, 2]), document_kv([1, 2])])
    assert keys[1] == keys[2] and store.size.records == 4 and store.size.tokens == 50


def test_a_key_depends_on_everything():
    changes = {"weights": "w2", "attention": "causal", "compression": "int8", "format": 2, "chat": (("bos", "x"),)}
    others = [dataclasses.replace(IDENTITY, **{name: value}) for name, value in changes.items()]
    keys = {document_key([1, 2], one) for one in (IDENTITY, *others)} | {document_key([2, 1], IDENTITY)}
    assert len(keys) == 7
    assert document_key([1, 2], IDENTITY) == document_key(np.array([1, 2]), IDENTITY)


def test_every_changed_byte_is_noticed():
    document = DOCUMENTS[1]
    blob, key = encode_record(document, IDENTITY), document_key(document.tokens, IDENTITY)
    header = PREFIX.size + read_header(blob, key, "d")["header_bytes"]
    body = -(-header // 64) * 64
    places = [*range(0, header, 7), *range(body, len(blob), 11), len(blob) - 1]
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


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_a_damaged_file_spoils_only_its_record(store, tmp_path):
    path = largest_file(tmp_path / "kv")
    data, victim = bytearray(path.read_bytes()), DOCUMENTS[2].v[1].tobytes()
    at = data.index(victim)
    data[at + 3] ^= 16
    path.write_bytes(data)
    again = DocumentStore.open(tmp_path / "kv", IDENTITY)
    keys = [again.key(d.tokens) for d in DOCUMENTS]
    found = again.fetch(keys, ["a", "b", "document 'c'"])
    assert_same(found[0], DOCUMENTS[0])
    assert_same(found[1], DOCUMENTS[1])
    assert isinstance(found[2], RecordError) and found[2].key == keys[2] and "document 'c'" in str(found[2])
    with pytest.raises(GritError, match="document 'c'.*damaged"):
        again.get_many(keys, ["a", "b", "document 'c'"])


def test_a_file_cut_short_or_gone_is_an_error_and_never_a_record(store, tmp_path):
    path, key = largest_file(tmp_path / "kv"), store.key(DOCUMENTS[2].tokens)
    whole = path.read_bytes()
    for left in (len(whole) - 1, len(whole) - 2000, 300, 0):
        path.write_bytes(whole[:left])
        # The tree's nodes stand in the same file: either the record cannot be read or the store cannot.
        with pytest.raises(GritError, match="document 'c'|document store"):
            DocumentStore.open(tmp_path / "kv", IDENTITY).get_many([key], ["document 'c'"])
    path.unlink()
    with pytest.raises(GritError, match="document 'c'|document store"):
        DocumentStore.open(tmp_path / "kv", IDENTITY).get_many([key], ["document 'c'"])


def test_absent_record_and_absent_store(store, tmp_path):
    with pytest.raises(RecordError, match="no record"):
        store.get_many(["0" * 64])
    with pytest.raises(GritError, match="grit index"):
        DocumentStore.open(tmp_path / "nowhere", IDENTITY)
    assert not (tmp_path / "nowhere").exists()


def test_another_models_store_does_not_open(store, tmp_path):
    other = RecordIdentity.of(fake_model("w2"))
    with pytest.raises(GritError, match="another model.*grit index"):
        DocumentStore.open(tmp_path / "kv", other)
    with pytest.raises(GritError, match="another model"):
        DocumentStore.open(tmp_path / "kv", other, create=True)


def test_a_batch_is_written_whole_or_not_at_all(store):
    before = store.size
    broken = dataclasses.replace(document_kv([3, 4]), tokens=np.array([3], np.int32))
    with pytest.raises(ValueError):
        store.put_many([document_kv([90, 91]), broken])
    assert store.size == before and not store.has(store.key([90, 91]))
