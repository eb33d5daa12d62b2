"""The files of an index: what is committed is there, and what is not is cut off."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, build_index
from grit_jax.rag.index_files import (
    DELETED,
    DOCUMENTS,
    NPY_HEADER,
    VECTORS,
    IndexSettings,
    deleted_rows,
    file_name,
    kept_rows,
    kept_vectors,
    npy_header,
    writing,
)
from grit_jax.rag.indexed_documents import IndexedDocuments
from grit_jax.rag.manifest import MANIFEST, read_manifest

SETTINGS = IndexSettings({}, "mean", "none", 3, default_max_length=64)


def line(number: int) -> dict:
    return {"id": f"d{number}", "title": "", "text": f"é {number}", "key": "", "tokens": number}


def vectors(*numbers: int) -> np.ndarray:
    return np.array([[number, 0.5, -number] for number in numbers], np.float32)


def assert_holds(path, numbers) -> None:
    """The documents of these numbers and their vectors, in this order."""
    manifest = read_manifest(path)
    documents = IndexedDocuments(path, manifest)
    assert [documents[i] for i in range(len(documents))] == [line(number) for number in numbers]
    stored = kept_vectors(path, manifest, kept_rows(path, manifest))
    np.testing.assert_array_equal(stored[:], vectors(*numbers))
    assert (manifest.documents, manifest.tokens) == (len(numbers), sum(numbers))


@pytest.mark.parametrize("count", [0, 1, 20, 999_999_999])
def test_the_header_is_one_that_numpy_reads(count):
    header = npy_header(count, 3)
    assert len(header) == NPY_HEADER
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    assert (shape, fortran_order, dtype) == ((count, 3), False, np.float32)
    assert file.tell() == NPY_HEADER


def test_rows_are_appended_deleted_and_copied_to_the_next_generation(tmp_path):
    path = tmp_path / "index"
    with writing(path, SETTINGS) as writer:
        writer.append(vectors(1, 2, 3), [line(1), line(2), line(3)])
        writer.append(vectors(4), [line(4)], deleted={1: 2})  # row 1, of 2 tokens
    assert_holds(path, [1, 3, 4])
    np.testing.assert_array_equal(np.load(path / VECTORS), vectors(1, 2, 3, 4))
    with writing(path, SETTINGS) as writer:
        writer.next_generation()
        assert_holds(path, [1, 3, 4])
        writer.append(vectors(5), [line(5)], deleted={0: 1})
    assert_holds(path, [3, 4, 5])
    assert file_name(VECTORS, 1) == "vectors.1.npy"
    np.testing.assert_array_equal(np.load(path / "vectors.1.npy"), vectors(1, 3, 4, 5))
    assert not any((path / name).exists() for name in (DOCUMENTS, VECTORS, DELETED))


def test_bytes_that_were_not_committed_are_cut_off(tmp_path):
    path = tmp_path / "index"
    with writing(path, SETTINGS) as writer:
        writer.append(vectors(1, 2), [line(1), line(2)])
        writer.append(vectors(), [], deleted={0: 1})
    committed = {name: (path / name).read_bytes() for name in (DOCUMENTS, VECTORS, DELETED)}
    for name, data in committed.items():
        (path / name).write_bytes(data + b"half a line")
    assert_holds(path, [2])  # a reader does not see them
    with writing(path, SETTINGS):
        pass
    assert {name: (path / name).read_bytes() for name in committed} == committed
    for name, data in committed.items():
        (path / name).write_bytes(data[:-1])
        with (
            pytest.raises(GritError, match=rf"is damaged \({name} is shorter than index\.json"),
            writing(path, SETTINGS),
        ):
            pass
        (path / name).write_bytes(data)


def test_deleted_rows_that_do_not_exist(tmp_path):
    path = tmp_path / "index"
    with writing(path, SETTINGS) as writer:
        writer.append(vectors(1, 2), [line(1), line(2)])
        writer.append(vectors(), [], deleted={1: 2})
    manifest = read_manifest(path)
    assert deleted_rows(path, manifest).tolist() == [1]
    (path / DELETED).write_bytes(np.array([2], "<i8").tobytes())
    with pytest.raises(GritError, match=r"deleted\.bin: is damaged .it has rows that do not exist"):
        deleted_rows(path, manifest)
    (path / DELETED).write_bytes(np.array([1, 1], "<i8").tobytes())
    with pytest.raises(GritError, match="1 rows are left, expected 0"):
        kept_rows(path, dataclasses.replace(manifest, deleted=2, documents=0))


def test_another_setting_is_named(tmp_path):
    with writing(tmp_path / "index", SETTINGS):
        pass
    for changes, message in (
        ({"dim": 4}, "the existing index has dim 3, not 4"),
        ({"pooling": "cls"}, "has pooling mean, not cls"),
        ({"kv": "int8"}, "has kv none, not int8"),
        ({"max_length": 63}, "has max_length 64, not 63"),
        ({"model": {"weights": "w"}}, "was made by another model"),
    ):
        with (
            pytest.raises(GritError, match=message),
            writing(tmp_path / "index", dataclasses.replace(SETTINGS, **changes)),
        ):
            pass
    # Another default does not change an index that has been made.
    other = dataclasses.replace(SETTINGS, default_max_length=32)
    with writing(tmp_path / "index", other) as writer:
        assert writer.manifest.max_length == 64


def test_places_that_hold_something_else(model, corpus, tmp_path):
    with pytest.raises(GritError, match="there is no index"):
        Index.open(tmp_path / "nowhere", model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    with pytest.raises(GritError, match="not empty"):
        build_index(model, corpus, tmp_path / "mine", quiet=True)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(GritError, match="cannot be written"):
        build_index(model, corpus, corpus / "index", quiet=True)


def test_one_writer_at_a_time(model, corpus, tmp_path):
    (tmp_path / "index").mkdir()
    with open(tmp_path / "index" / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GritError, match="another grit index"):
            build_index(model, corpus, tmp_path / "index", quiet=True)
    build_index(model, corpus, tmp_path / "index", quiet=True)


def test_damaged_files_are_noticed(model, corpus, tmp_path):
    build_index(model, corpus, tmp_path / "index", quiet=True)
    path = tmp_path / "index"
    whole = (path / DOCUMENTS).read_bytes()
    (path / DOCUMENTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GritError, match="cut short"):
        Index.open(path, model)
    with pytest.raises(GritError, match="damaged"):
        build_index(model, corpus, path, quiet=True)
    (path / DOCUMENTS).write_bytes(whole)
    vectors = (path / VECTORS).read_bytes()
    (path / VECTORS).write_bytes(vectors[:-4])
    with pytest.raises(GritError, match="cannot be read"):
        Index.open(path, model).search(np.ones((1, 8)), 1)
    (path / MANIFEST).write_text("{")
    with pytest.raises(GritError, match="index.json"):
        Index.open(path, model)
