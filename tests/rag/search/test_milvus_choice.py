"""Choosing Milvus for an index, where it is not installed or told wrongly; what it does for real is
in test_milvus.py."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.manifest import MANIFEST
from grit_jax.rag.search.exact import ExactSearch


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        "".join(f'{{"id": "d{i}", "text": "text {i}"}}\n' for i in range(20))
    )
    return tmp_path / "c.jsonl"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"vectors": "faiss"}, "--vectors: expected exact or milvus, got 'faiss'"),
        ({"milvus": "embedded"}, "--milvus embedded: needs --vectors milvus"),
        ({"milvus": "http://h:1", "vectors": "exact"}, "needs --vectors milvus"),
        (
            {"milvus": "milvus.db", "vectors": "milvus"},
            "embedded or a URI like http://host:19530, got 'milvus.db'",
        ),
        ({"milvus": "http://root:pw@h:1", "vectors": "milvus"}, "MILVUS_TOKEN, not into the URI"),
    ],
)
def test_wrong_words(model, corpus, tmp_path, options, words):
    with pytest.raises(GritError, match=words) as raised:
        build_index(
            model, corpus, tmp_path / "index", IndexOptions(kv="none", **options), quiet=True
        )
    assert "pw" not in str(raised.value) and not model.encoder.encoded


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_without_its_packages_the_extra_is_named(model, corpus, tmp_path, monkeypatch, package):
    path = tmp_path / "index"
    build_index(model, corpus, path, IndexOptions(kv="none"), quiet=True)
    model.encoder.encoded.clear()
    monkeypatch.setitem(sys.modules, package, None)
    if package == "milvus_lite":  # pymilvus alone is enough for a server
        monkeypatch.setitem(sys.modules, "pymilvus", sys)
    with pytest.raises(GritError, match=r"pip install 'grit_jax\[milvus\]'"):
        build_index(model, corpus, path, IndexOptions(kv="none", vectors="milvus"), quiet=True)
    # Nothing has changed, and exact search needs none of it.
    index = Index.open(path, model)
    assert isinstance(index._search, ExactSearch) and index.search(
        np.ones((1, 8)), 3
    ).rows.shape == (1, 3)
    build_index(model, corpus, path, IndexOptions(kv="none", vectors="exact"), quiet=True)
    manifest = json.loads((path / MANIFEST).read_text())
    entry = {"uri": None, "name": "grit_0", "generation": 0, "rows": 20, "deleted": 0}
    (path / MANIFEST).write_text(json.dumps(manifest | {"milvus": entry}))
    for use in (
        Index.open,
        lambda *_: build_index(model, corpus, path, IndexOptions(kv="none"), quiet=True),
    ):
        with pytest.raises(GritError, match=r"pip install 'grit_jax\[milvus\]'"):
            use(path, model)
    # The files are the truth: it can always be searched exactly again.
    build_index(model, corpus, path, IndexOptions(kv="none", vectors="exact"), quiet=True)
    assert isinstance(Index.open(path, model)._search, ExactSearch) and not model.encoder.encoded
