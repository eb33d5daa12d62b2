"""Which file a document belongs to."""

from __future__ import annotations

import pytest

from grit_jax.rag.index import Index
from grit_jax.serving.sources import file_of, files_of, is_uploaded, source_of

LINE = {"id": "d1", "title": "", "text": "t", "key": "", "tokens": 1}


def test_a_document_of_an_uploaded_file():
    line = LINE | {"metadata": {"file_id": "file-1", "filename": "a.txt", "year": 2020}}
    assert is_uploaded(line) and file_of(line) == "file-1"
    assert source_of(line) == {
        "file_id": "file-1",
        "filename": "a.txt",
        "attributes": {"year": 2020},
        "document_id": "d1",
    }


@pytest.mark.parametrize(
    "metadata", [{}, {"file_id": "x", "filename": "a"}, {"file_id": 3}, {"file_id": "file-1"}]
)
def test_any_other_document_is_a_file_of_its_own(metadata):
    line = LINE | {"title": "T", "metadata": metadata}
    assert not is_uploaded(line) and file_of(line) == "d1"
    assert source_of(line)["filename"] == "T" and source_of(line)["attributes"] == metadata


def test_the_files_of_an_index(tiny_model, index_path):
    assert files_of(Index.open(index_path, tiny_model)) == {f"d{i}": [i] for i in range(12)}
