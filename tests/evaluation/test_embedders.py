"""Vectors of documents in memory and in files, and a run that was killed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from retrieval_folders import beir_folder

from grit_jax.evaluation import embedders
from grit_jax.evaluation.embedders import ModelEmbedder, document_vectors
from grit_jax.evaluation.retrieval_data import read_task


class Killed(BaseException):
    pass


@pytest.fixture
def task(tmp_path):
    return read_task(beir_folder(tmp_path / "task"))


def test_a_file_of_vectors_and_a_killed_run(tiny_model, task, tmp_path, monkeypatch):
    embedder = ModelEmbedder(tiny_model)
    with document_vectors(task, embedder) as in_memory:
        expected = np.asarray(in_memory.vectors)
    assert expected.shape == (6, tiny_model.embedding_width)
    np.testing.assert_allclose(
        expected, tiny_model.encode([d.content for d in task.documents]), atol=1e-6
    )
    monkeypatch.setattr(embedders, "BLOCK", 2)
    encoded = []

    class Dying(ModelEmbedder):
        def embed(self, texts, *, show=True):
            if len(encoded) == 2:
                raise Killed
            encoded.append([text.text for text in texts])
            return super().embed(texts, show=show)

    folder = tmp_path / "vectors"
    with pytest.raises(Killed), document_vectors(task, Dying(tiny_model), folder):
        pass
    encoded.clear()
    with document_vectors(task, Dying(tiny_model), folder) as stored:
        np.testing.assert_allclose(np.asarray(stored.vectors), expected, atol=1e-6)
    contents = [document.content for document in task.documents]
    assert encoded == [contents[4:]]  # the last block alone
    encoded.clear()
    with document_vectors(task, Dying(tiny_model), folder) as stored:
        assert stored.vectors.shape == expected.shape and not encoded
    [state] = folder.glob("*.json")
    assert json.loads(state.read_text()) == {"done": 6, "truncated": 0}
    # Other documents, or another limit, are other vectors.
    with document_vectors(task, ModelEmbedder(tiny_model, max_length=16), folder):
        assert len(list(folder.glob("*.npy"))) == 2


def test_truncated_documents_are_counted(tiny_model, task, tmp_path):
    for folder in (None, tmp_path / "vectors", tmp_path / "vectors"):
        with document_vectors(task, ModelEmbedder(tiny_model, max_length=16), folder) as found:
            assert found.truncated > 0
            counted = found.truncated
    lengths = [len(tiny_model.encoder.format([d.content]).ids[0]) for d in task.documents]
    assert counted == sum(length > 16 for length in lengths)
