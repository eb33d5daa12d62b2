"""The document store: records come back bit by bit or not at all."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tensorstore as ts
from fake_model import document_kv, fake_model, packed, stored_keys
from stored_records import DOCUMENTS, IDENTITY, assert_same

from grit_jax.errors import GritError
from grit_jax.rag import store as store_module
from grit_jax.rag.codecs.codecs import VERSIONS, calibrate, compression_of
from grit_jax.rag.record_format import (
    RecordError,
    RecordIdentity,
    decode_record,
    document_key,
    encode_record,
)
from grit_jax.rag.store import DocumentStore, StoreSize, claim_store, remove_store, store_owner


@pytest.fixture
def store(tmp_path):
    store = DocumentStore.create(tmp_path / "kv", IDENTITY)
    store.put_many(DOCUMENTS)
    return store


def test_records_come_back_bit_by_bit_in_any_order(store, tmp_path):
    keys = [store.key(d.tokens) for d in DOCUMENTS]
    again = DocumentStore.open(tmp_path / "kv", IDENTITY)
    for order in ([0, 1, 2], [2, 0], [1, 1]):
        for found, i in zip(again.fetch([keys[i] for i in order]), order, strict=True):
            assert_same(found, DOCUMENTS[i])
    assert again.has_many([*keys, "0" * 64]) == [True, True, True, False]


def test_what_is_there_is_not_written_again(store):
    before = store.size
    assert before.records == 3 and before.tokens == 48
    assert before.bytes == sum(len(encode_record(d, IDENTITY)) for d in DOCUMENTS)
    keys = store.put_many([DOCUMENTS[0], document_kv([1, 2]), document_kv([1, 2])])
    assert keys[1] == keys[2] and store.size.records == 4 and store.size.tokens == 50


def test_long_records_are_read_in_parts(tmp_path, monkeypatch):
    """Ranges of whole layers, checked one by one; nothing else of the record is read."""
    monkeypatch.setattr(store_module, "HEAD", 800)
    monkeypatch.setattr(store_module, "PART", 2000)
    store = DocumentStore.create(tmp_path / "kv", IDENTITY)
    documents = [document_kv(range(10, 10 + n)) for n in (40, 3, 90)]
    keys = store.put_many(documents)
    read: list[slice] = []
    original = DocumentStore._read

    def spy(self, key, part=None):
        read.append(part)
        return original(self, key, part)

    monkeypatch.setattr(DocumentStore, "_read", spy)
    for found, document in zip(store.fetch(keys), documents, strict=True):
        assert_same(found, document)
    # The short one whole, after a head that it is shorter than; layers of 1280 and 2880 bytes one
    # at a time.
    assert (
        sorted(part.stop - part.start if part else 0 for part in read)
        == [0] + [800] * 3 + [1280] * 3 + [2880] * 3
    )
    path = largest_file(tmp_path / "kv")
    data, victim = bytearray(path.read_bytes()), documents[2].v[1].tobytes()
    data[data.index(victim) + 9] ^= 1
    path.write_bytes(data)
    found = DocumentStore.open(tmp_path / "kv", IDENTITY).fetch(keys, ["a", "b", "document 'c'"])
    assert_same(found[0], documents[0])
    assert (
        isinstance(found[2], RecordError)
        and "document 'c'" in str(found[2])
        and "layer 1" in str(found[2])
    )
    coming = DocumentStore.open(tmp_path / "kv", IDENTITY).stream(keys, ["a", "b", "document 'c'"])[
        2
    ]
    np.testing.assert_array_equal(coming.layer(0)["k"], documents[2].k[0])
    with pytest.raises(RecordError, match="document 'c'.*layer 1"):
        coming.layer(1)


@pytest.mark.parametrize("url", ["memory://records/of/mine", "file://{}/records"])
def test_any_place_that_tensorstore_knows(url, tmp_path):
    """What `gs://` goes through: URLs, and a context that credentials and caches belong to."""
    url, context = url.format(tmp_path), ts.Context()
    with pytest.raises(GritError, match="grit index"):
        DocumentStore.open(url, IDENTITY, context)
    created = DocumentStore.create(url, IDENTITY, context=context, index_id="mine")
    keys = created.put_many(DOCUMENTS)
    store = DocumentStore.open(url, IDENTITY, context, index_id="mine")
    for use in (DocumentStore.open, DocumentStore.create):
        with pytest.raises(GritError, match="belongs to another index"):
            use(url, IDENTITY, context=context, index_id="another")
    with pytest.raises(GritError, match="belongs to another index"):
        claim_store(url, "another", context)
    assert not remove_store(url, "another", context) and store_owner(url, context) == "mine"
    for found, document in zip(store.fetch(keys), DOCUMENTS, strict=True):
        assert_same(found, document)
    other = DocumentStore.create(url + ".1", IDENTITY, context=context)
    store.copy_to(other, keys[:2])
    assert remove_store(url, "mine", context) and store_owner(url, context) is None
    with pytest.raises(GritError, match="grit index"):
        DocumentStore.open(url, IDENTITY, context)
    assert DocumentStore.open(url + ".1", IDENTITY, context).has_many(keys) == [True, True, False]


def test_records_are_removed_and_counted_off(store, tmp_path):
    keys = [store.key(d.tokens) for d in DOCUMENTS]
    store.delete_many([keys[1], "0" * 64])
    sizes = [len(encode_record(d, IDENTITY)) for d in DOCUMENTS]
    assert store.size == StoreSize(2, 41, sizes[0] + sizes[2]) and stored_keys(store) == {
        keys[0],
        keys[2],
    }
    assert store.has_many(keys) == [True, False, True]
    store.delete_many(keys)
    assert store.size == StoreSize() and not stored_keys(store)
    store.put_many(DOCUMENTS)
    assert_same(DocumentStore.open(tmp_path / "kv", IDENTITY).fetch(keys)[1], DOCUMENTS[1])


def test_copies_hold_what_can_be_read(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "COPY_BYTES", 1)  # one record a transaction
    keys = [store.key(d.tokens) for d in DOCUMENTS]
    other = DocumentStore.create(tmp_path / "other", IDENTITY)
    other.put_many(DOCUMENTS[:1])
    store.copy_to(other, keys)
    assert other.size == store.size
    for found, document in zip(other.fetch(keys), DOCUMENTS, strict=True):
        assert_same(found, document)


@pytest.mark.parametrize("kind", ["int8", "int4", "pca2"])
def test_packed_records(kind, tmp_path):
    """The store keeps the calibration; a record of another one is another record."""
    codec = calibrate(kind, [document_kv(range(100, 180))])
    identity = dataclasses.replace(IDENTITY, compression=compression_of(kind, codec))
    documents = [packed(document, codec) for document in DOCUMENTS]
    DocumentStore.create(tmp_path / "kv", identity, codec).put_many(documents)
    store = DocumentStore.open(tmp_path / "kv", identity)
    keys = [store.key(d.tokens) for d in DOCUMENTS]
    assert not set(keys) & {document_key(d.tokens, IDENTITY) for d in DOCUMENTS}
    for found, document in zip(store.fetch(keys), documents, strict=True):
        assert found.codec is store.codec and found.arrays.keys() == document.arrays.keys()
        for name, array in document.arrays.items():
            assert (
                found.arrays[name].tobytes() == array.tobytes()
                and found.arrays[name].dtype == array.dtype
            )
    again = found.codec.expand({name: array[:, None] for name, array in found.arrays.items()})
    expected = codec.expand({name: array[:, None] for name, array in documents[2].arrays.items()})
    np.testing.assert_array_equal(again.k, expected.k)
    np.testing.assert_array_equal(again.v, expected.v)
    # Another calibration: refused by name where it matters, taken as it is by a maker that starts
    # anew.
    other = calibrate(kind, [document_kv(range(200, 260))])
    moved = dataclasses.replace(IDENTITY, compression=compression_of(kind, other))
    with pytest.raises(GritError, match=f"another compression \\({kind}-{VERSIONS[kind]}-"):
        DocumentStore.open(tmp_path / "kv", moved)
    assert DocumentStore.create(tmp_path / "kv", moved, other).identity == identity
    with pytest.raises(GritError, match="another compression"):
        DocumentStore.create(tmp_path / "kv", IDENTITY)
    blob = encode_record(documents[1], identity)
    with pytest.raises(RecordError, match="zeno.*another compression"):
        decode_record(blob, document_key(DOCUMENTS[1].tokens, moved), moved, "zeno", other)
    for place in (len(blob) // 2, len(blob) - 9):
        damaged = bytearray(blob)
        damaged[place] ^= 1
        with pytest.raises(RecordError, match="zeno.*damaged"):
            decode_record(bytes(damaged), keys[1], identity, "zeno", codec)


def test_a_damaged_calibration_is_an_error(tmp_path):
    codec = calibrate("int8", [document_kv(range(100, 180))])
    identity = dataclasses.replace(IDENTITY, compression=compression_of("int8", codec))
    DocumentStore.create(tmp_path / "kv", identity, codec)
    path = largest_file(tmp_path / "kv")
    data = path.read_bytes()
    at = data.index(np.asarray(codec.step).tobytes())
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    with pytest.raises(GritError, match="calibration.*damaged"):
        DocumentStore.open(tmp_path / "kv", identity)
    unknown = dataclasses.replace(IDENTITY, compression="int3-9-0")
    DocumentStore.create(tmp_path / "other", unknown)
    with pytest.raises(GritError, match="'int3-9-0' is unknown"):
        DocumentStore.open(tmp_path / "other", unknown)


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
    assert (
        isinstance(found[2], RecordError)
        and found[2].key == keys[2]
        and "document 'c'" in str(found[2])
    )
    assert re.search("document 'c'.*damaged", str(found[2]))


def test_a_file_cut_short_or_gone_is_an_error_and_never_a_record(store, tmp_path):
    path, key = largest_file(tmp_path / "kv"), store.key(DOCUMENTS[2].tokens)
    whole = path.read_bytes()
    for left in (len(whole) - 1, len(whole) - 2000, 300, 0):
        path.write_bytes(whole[:left])
        # The tree's nodes stand in the same file: either the record cannot be read or the store
        # cannot.
        assert_unreadable(tmp_path / "kv", key)
    path.unlink()
    assert_unreadable(tmp_path / "kv", key)


def assert_unreadable(path, key):
    try:
        record = DocumentStore.open(path, IDENTITY).fetch([key], ["document 'c'"])[0]
    except GritError as error:
        assert "document store" in str(error)
    else:
        assert isinstance(record, RecordError) and "document 'c'" in str(record)


def test_what_a_killed_writer_left_does_no_harm(store, tmp_path):
    """A file under the name that TensorStore locks and writes to first, longer than what is written
    next."""
    (tmp_path / "kv" / "manifest.ocdbt.__lock").write_bytes(b"x" * 5000)
    DocumentStore.open(tmp_path / "kv", IDENTITY).put_many([document_kv([1, 2])])
    again = DocumentStore.open(tmp_path / "kv", IDENTITY)
    assert again.size.records == 4 and again.has_many([again.key([1, 2])]) == [True]
    assert not remove_store(tmp_path / "kv", "an-index")  # nobody's store is not removed
    claim_store(tmp_path / "kv", "an-index")
    assert not remove_store(tmp_path / "kv", "another") and (tmp_path / "kv").exists()
    assert remove_store(tmp_path / "kv", "an-index") and not (tmp_path / "kv").exists()


def test_absent_record_and_absent_store(store, tmp_path):
    [record] = store.fetch(["0" * 64])
    assert isinstance(record, RecordError) and "no record" in str(record)
    with pytest.raises(GritError, match="grit index"):
        DocumentStore.open(tmp_path / "nowhere", IDENTITY)
    assert not (tmp_path / "nowhere").exists()


def test_another_models_store_does_not_open(store, tmp_path):
    other = RecordIdentity.of(fake_model("w2"))
    with pytest.raises(GritError, match="another model.*grit index"):
        DocumentStore.open(tmp_path / "kv", other)
    with pytest.raises(GritError, match="another model"):
        DocumentStore.create(tmp_path / "kv", other)


def test_a_batch_is_written_whole_or_not_at_all(store):
    before = store.size
    broken = dataclasses.replace(document_kv([3, 4]), tokens=np.array([3], np.int32))
    with pytest.raises(ValueError):
        store.put_many([document_kv([90, 91]), broken])
    assert store.size == before and store.has_many([store.key([90, 91])]) == [False]
