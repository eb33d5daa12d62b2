"""Where an index keeps its records: one place from every working directory, and no other index's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_model import document_kv

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.manifest import (
    MANIFEST,
    IndexManifest,
    MilvusCollection,
    read_manifest,
    store_location,
    store_path,
    write_manifest,
)
from grit_jax.rag.store import OWNER, store_owner

FIRST = [{"id": f"a{i}", "text": f"first corpus, text {i}"} for i in range(12)]
SECOND = [{"id": f"b{i}", "text": f"second corpus, text {i}"} for i in range(12)]
UPDATE = IndexOptions(update=True, delete_missing=True)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folders(tmp_path):
    """Two working directories."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    return tmp_path / "here", tmp_path / "there"


def build(model, path: Path, rows, options: IndexOptions = UPDATE):
    corpus = write(path.with_name(path.name + ".jsonl"), rows)
    return build_index(model, corpus, path, options, quiet=True)


def assert_holds(model, path: Path, rows):
    """Every document's own record, and as many records as documents."""
    index = Index.open(path, model)
    by_id = {index.documents[i]["id"]: index.documents[i] for i in range(len(index))}
    assert by_id.keys() == {row["id"] for row in rows}
    for row in rows:
        tokens = [256, *row["text"].encode()]
        [record] = index.store.fetch([by_id[row["id"]]["key"]])
        np.testing.assert_array_equal(record.k, document_kv(tokens).k)
    assert index.store.size.records == len(rows)


def test_a_relative_store_is_the_same_from_every_working_directory(model, folders, monkeypatch):
    """Two indexes made with `--store caches` in two folders. Updating the first one from the second
    one's folder, so much that its files are copied, changes the first one's records alone."""
    here, there = folders
    for folder, rows in ((here, FIRST), (there, SECOND)):
        monkeypatch.chdir(folder)
        build(model, folder / "index", rows, IndexOptions(store="caches"))
        assert read_manifest(folder / "index").store == str(folder / "caches")
    # We are in `there`. Twice: the first update makes `caches.1` and the next removes what is left.
    for rows in (FIRST[:4], [*FIRST[:3], {"id": "new", "text": "a new one"}], FIRST[:1]):
        build(model, here / "index", rows)
        assert_holds(model, here / "index", rows)
        assert_holds(model, there / "index", SECOND)
    assert [path.name for path in there.iterdir() if path.name.startswith("caches")] == ["caches"]
    monkeypatch.chdir(here.parent)
    assert_holds(model, Path("here/index"), FIRST[:1])
    # The same store named anew, from elsewhere and relative to there, is the same store.
    build(model, there / "index", SECOND, IndexOptions(store="there/caches"))
    with pytest.raises(GritError, match="here/caches is not the document store of this index"):
        build(model, there / "index", SECOND, IndexOptions(store="here/caches"))


def test_another_indexs_store_is_neither_read_written_nor_removed(model, folders):
    here, there = folders
    build(model, here / "index", FIRST, IndexOptions(store=str(here / "caches")))
    build(model, there / "index", SECOND, IndexOptions(store=str(there / "caches")))
    with pytest.raises(GritError, match="caches: this document store belongs to another index"):
        build(model, here / "third", FIRST, IndexOptions(store=str(there / "caches")))
    # The store of one index is put where the other's was.
    shutil.rmtree(here / "caches")
    shutil.copytree(there / "caches", here / "caches")
    content = {path: path.read_bytes() for path in (here / "caches").rglob("*") if path.is_file()}
    with pytest.raises(GritError, match="belongs to another index"):
        _ = Index.open(here / "index", model).store
    for rows in (FIRST[:2], [*FIRST, {"id": "new", "text": "new"}]):
        with pytest.raises(GritError, match="belongs to another index"):
            build(model, here / "index", rows)
    assert content == {
        path: path.read_bytes() for path in (here / "caches").rglob("*") if path.is_file()
    }


def test_a_store_does_not_go_among_files_that_removing_it_would_remove(model, tmp_path):
    mine = tmp_path / "data" / "d" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(GritError, match="data: d/ holds other files"):
        build(model, tmp_path / "index", FIRST, IndexOptions(store=str(tmp_path / "data")))
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [mine]
    other = tmp_path / "notes" / "note.txt"  # which a store does not touch
    other.parent.mkdir()
    other.write_text("mine")
    build(model, tmp_path / "beside", FIRST, IndexOptions(store=str(tmp_path / "notes")))
    assert other.read_text() == "mine" and store_owner(tmp_path / "notes") is not None


def test_a_place_that_the_next_generation_needs_may_be_another_indexs(model, tmp_path):
    build(model, tmp_path / "one", FIRST, IndexOptions(store=str(tmp_path / "caches")))
    build(model, tmp_path / "two", SECOND, IndexOptions(store=str(tmp_path / "caches.1")))
    with pytest.raises(GritError, match=r"caches\.1: this document store belongs to another"):
        build(model, tmp_path / "one", FIRST[:2])
    assert_holds(model, tmp_path / "two", SECOND)
    assert_holds(model, tmp_path / "one", FIRST[:2])


@pytest.mark.parametrize("store", [None, "index/records", "beside"])
def test_an_index_that_is_moved_keeps_its_records(model, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    build(model, tmp_path / "index", FIRST, IndexOptions(store=store))
    expected = {None: None, "index/records": "records", "beside": str(tmp_path / "beside")}
    assert read_manifest(tmp_path / "index").store == expected[store]
    (tmp_path / "index").rename(tmp_path / "moved")
    assert_holds(model, tmp_path / "moved", FIRST)
    build(model, tmp_path / "moved", FIRST[:3])
    assert_holds(model, tmp_path / "moved", FIRST[:3])
    assert read_manifest(tmp_path / "moved").folder == str(tmp_path / "moved")


def test_a_store_that_is_moved_is_named_anew(model, tmp_path):
    build(model, tmp_path / "index", FIRST, IndexOptions(store=str(tmp_path / "caches")))
    (tmp_path / "caches").rename(tmp_path / "disk")
    with pytest.raises(GritError, match="there is no document store"):
        build(model, tmp_path / "index", FIRST)
    build(model, tmp_path / "index", FIRST, IndexOptions(store=str(tmp_path / "disk")))
    assert_holds(model, tmp_path / "index", FIRST)


def test_a_copy_of_an_index_does_not_change_the_originals_records(model, tmp_path):
    build(model, tmp_path / "index", FIRST, IndexOptions(store=str(tmp_path / "caches")))
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    assert_holds(model, tmp_path / "copy", FIRST)  # it can be read
    with pytest.raises(GritError, match="copy: is a copy of the index .*/index and shares"):
        build(model, tmp_path / "copy", FIRST[:2])
    assert_holds(model, tmp_path / "index", FIRST)
    # A copy with the records in its own folder is an index of its own.
    build(model, tmp_path / "whole", SECOND)
    shutil.copytree(tmp_path / "whole", tmp_path / "second")
    build(model, tmp_path / "second", SECOND[:2])
    assert_holds(model, tmp_path / "whole", SECOND)
    assert_holds(model, tmp_path / "second", SECOND[:2])


def test_urls_and_paths(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    index = tmp_path / "index"
    for given, kept in (
        ("gs://bucket/caches/", "gs://bucket/caches"),
        ("memory://caches", "memory://caches"),
        ("caches", str(tmp_path / "work" / "caches")),
        ("../index/caches", "caches"),
        (str(index / "a" / "b"), "a/b"),
        ("~/caches", str(tmp_path / "caches")),
    ):
        assert store_location(given, index) == kept
    with pytest.raises(GritError, match="is the folder of the index"):
        store_location("../index", index)
    manifest = manifest_with(store="gs://bucket/caches", generation=2)
    assert store_path(index, manifest) == "gs://bucket/caches.2"
    assert store_path(index, manifest, 0) == "gs://bucket/caches"
    assert store_path(index, manifest_with(store=None)) == str(index / "kv")
    assert store_path(index, manifest_with(store="a/b")) == str(index / "a" / "b")
    assert store_path(index, manifest_with(store="/data/c", generation=1)) == "/data/c.1"


def manifest_with(**changes) -> IndexManifest:
    return IndexManifest(model={}, pooling="mean", kv="native", dim=8, max_length=64, **changes)


def test_what_is_written_is_read(tmp_path):
    manifest = manifest_with(
        index_id="i", folder="/f", milvus=MilvusCollection(None, "n", 1, 2, 3), rows=4, deleted=1
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    values = json.loads((tmp_path / MANIFEST).read_text())
    for name, value in (("rows", True), ("milvus", {"uri": None}), ("store", 3), ("model", [])):
        (tmp_path / MANIFEST).write_text(json.dumps({**values, name: value}))
        with pytest.raises(GritError, match="is not the manifest of an index"):
            read_manifest(tmp_path)


# ---- indexes of format 2 -------------------------------------------------------------------------


def to_format_2(path: Path, **changes) -> None:
    """Rewrites an index as an earlier version left it."""
    values = json.loads((path / MANIFEST).read_text())
    owner = Path(store_path(path, read_manifest(path))) / OWNER
    owner.unlink()
    for name in ("index_id", "folder"):
        del values[name]
    values["dead"] = values.pop("deleted")
    values["format"] = 2
    for file in path.glob("deleted*.bin"):
        file.rename(file.with_name(file.name.replace("deleted", "dead")))
    (path / MANIFEST).write_text(json.dumps({**values, **changes}))


def test_an_index_of_format_2_is_read_and_brought_up_to_date(model, tmp_path):
    build(model, tmp_path / "index", FIRST)
    build(model, tmp_path / "index", FIRST[1:])  # a deleted row
    to_format_2(tmp_path / "index")
    before = {path: path.read_bytes() for path in (tmp_path / "index").iterdir() if path.is_file()}
    assert_holds(model, tmp_path / "index", FIRST[1:])
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "index").iterdir() if path.is_file()
    }
    build(model, tmp_path / "index", FIRST[1:])
    assert_holds(model, tmp_path / "index", FIRST[1:])
    manifest = read_manifest(tmp_path / "index")
    assert (manifest.format, manifest.deleted, manifest.rows) == (3, 1, 12)
    assert store_owner(tmp_path / "index" / "kv") == manifest.index_id
    assert not (tmp_path / "index" / "dead.bin").exists()


def test_a_relative_store_of_format_2_has_to_be_named_again(model, folders, monkeypatch):
    here, there = folders
    for folder, rows in ((here, FIRST), (there, SECOND)):
        monkeypatch.chdir(folder)
        build(model, folder / "index", rows, IndexOptions(store="caches"))
        to_format_2(folder / "index", store="caches")
    with pytest.raises(GritError, match="was made with --store caches, relative to a folder"):
        build(model, here / "index", FIRST[:2])
    with pytest.raises(GritError, match="does not hold the records of .*here/index"):
        build(model, here / "index", FIRST[:2], IndexOptions(store="caches", update=True))
    assert_holds(model, there / "index", SECOND)
    # The right one is accepted, even after a wrong one.
    build(model, here / "index", FIRST, IndexOptions(store=str(here / "caches")))
    assert_holds(model, here / "index", FIRST)
    assert store_owner(here / "caches") == read_manifest(here / "index").index_id
    assert store_owner(there / "caches") is None
