"""Connections to Milvus: the URIs that are accepted, and the lock of an embedded file."""

from __future__ import annotations

import fcntl

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.search.milvus_server import (
    EMBEDDED,
    checked_uri,
    refuse_a_second_process,
)


def test_uris():
    assert checked_uri("embedded") is None
    for uri in ("http://host:19530", "https://host", "tcp://10.0.0.1:19530", "unix:/run/m.sock"):
        assert checked_uri(uri) == uri
    for uri in ("milvus.db", "host:19530", "http://", "ftp://host", ""):
        with pytest.raises(GritError, match=f"embedded or a URI like http://host:.* got '{uri}'"):
            checked_uri(uri)
    with pytest.raises(GritError, match="MILVUS_TOKEN, not into the URI") as error:
        checked_uri("http://root:pw@host")
    assert "pw" not in str(error.value)


def test_an_embedded_file_serves_one_process(tmp_path):
    """Milvus Lite holds a lock in the folder of its file for as long as it runs."""
    file = tmp_path / EMBEDDED
    refuse_a_second_process(str(file))  # there is none yet
    file.mkdir()
    with open(file / "LOCK", "wb") as lock:
        refuse_a_second_process(str(file))
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GritError, match=r"milvus\.db: another process has it open"):
            refuse_a_second_process(str(file))
        fcntl.flock(lock, fcntl.LOCK_UN)
        refuse_a_second_process(str(file))
