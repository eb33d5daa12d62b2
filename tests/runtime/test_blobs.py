"""Blobs in a folder: whole or not at all, under their names."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.blobs import BlobStore, is_url


def test_blobs_are_written_read_listed_and_deleted(tmp_path):
    store = BlobStore(tmp_path / "made" / "with the first")
    assert store.names() == [] and store.read("a") is None
    store.write("a", b"one")
    store.write("a", b"two")
    store.write("b", bytes(range(256)) * 1000)
    assert store.names() == ["a", "b"] and store.names("b") == ["b"]
    assert store.read("a") == b"two" and store.read("b") == bytes(range(256)) * 1000
    assert (tmp_path / "made" / "with the first" / "a").read_bytes() == b"two"
    assert len(list((tmp_path / "made" / "with the first").iterdir())) == 2
    store.delete(["a", "absent"])
    assert BlobStore(tmp_path / "made" / "with the first").names() == ["b"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GritError, match=r"file/below: cannot be written"):
        BlobStore(tmp_path / "file" / "below").write("a", b"")


def test_what_is_a_url():
    assert is_url("gs://bucket/folder") and not is_url("folder/a")
