"""The model in mteb's protocols, called as mteb calls it; mteb itself is not needed. What mteb makes
of them is tested in tests/peers/test_mteb.py."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest

from grit_jax.evaluation.mteb_instructions import TaskInstruction
from grit_jax.evaluation.mteb_models import (
    LocalTexts,
    MtebCrossEncoder,
    MtebEncoder,
    MtebSearch,
    document_text,
    is_document,
    query_texts,
)
from grit_jax.rag.search.exact import SearchSettings
from grit_jax.rag.search.hybrid import Retrieval

TASK = types.SimpleNamespace(name="Mine")
INSTRUCTIONS = {"Mine": TaskInstruction("Mine", "Retrieval", "Find it", "A document")}
DOCUMENT, QUERY = types.SimpleNamespace(value="document"), types.SimpleNamespace(value="query")


class Columns(dict):
    """A data set of queries, as far as it is read."""

    @property
    def column_names(self):
        return list(self)


@pytest.fixture(scope="module")
def corpus(sentences):
    rows = [
        {"id": f"d{i}", "title": "", "text": f" {text}"} for i, text in enumerate(sentences[:9])
    ]
    rows[2]["title"] = "Stone"
    return [*rows, {"id": "none", "title": "", "text": " "}]


@pytest.fixture(scope="module")
def queries(sentences):
    return Columns(id=["q0", "q1"], text=[sentences[3][:20], sentences[5][:20]])


def test_texts_get_the_instruction_of_their_kind(tiny_model, sentences):
    encoder = MtebEncoder(LocalTexts(tiny_model), INSTRUCTIONS, None)
    batches = [{"text": sentences[:2]}, {"text": sentences[2:3], "id": ["a"]}]
    for kind, instruction in ((DOCUMENT, "A document"), (QUERY, "Find it"), (None, "Find it")):
        found = encoder.encode(
            batches, task_metadata=TASK, hf_split="t", hf_subset="d", prompt_type=kind, batch_size=2
        )
        expected = tiny_model.encode(sentences[:3], instruction)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not is_document("query") and is_document("document")


def test_texts_that_are_cut_are_counted(tiny_model, sentences):
    texts = LocalTexts(tiny_model, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            found = texts.encode([*sentences[:2], "a"], "")
    assert texts.truncated == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(found[:2], tiny_model.encode(sentences[:2], "", 12), atol=1e-6)


def searched(model, corpus, queries, *options, top_ranked=None, top_k=4):
    encoder = MtebEncoder(
        LocalTexts(model), {"Mine": TaskInstruction("Mine", "R", "Find it")}, None
    )
    search = MtebSearch(model, encoder, *options)
    with pytest.warns(UserWarning, match="Mine: 1 documents have no text and cannot be found"):
        search.index(corpus, task_metadata=TASK, hf_split="t", hf_subset="d", num_proc=None)
    return search.search(
        queries, task_metadata=TASK, top_k=top_k, top_ranked=top_ranked, num_proc=1
    )


def test_search_over_an_index_is_that_over_the_vectors(tiny_model, corpus, queries):
    texts = [f"{row['title']} {row['text']}".strip() for row in corpus[:9]]
    assert texts == [document_text(row) for row in corpus[:9]]
    scores = tiny_model.encode(queries["text"], "Find it") @ tiny_model.encode(texts).T
    found = searched(tiny_model, corpus, queries)
    for name, row in zip(queries["id"], scores, strict=True):
        best = np.argsort(-row)[:4]
        assert list(found[name]) == [f"d{i}" for i in best]
        np.testing.assert_allclose(list(found[name].values()), row[best], atol=1e-6)
    ranked = {"q0": ["d7", "none", "d1", "d8"], "q1": ["none"]}
    found = searched(tiny_model, corpus, queries, top_ranked=ranked)
    best = sorted([7, 1, 8], key=lambda i: -scores[0, i])
    assert found == {"q0": {f"d{i}": pytest.approx(scores[0, i], abs=1e-6) for i in best}, "q1": {}}


def test_search_by_words_and_with_fewer_bits(tiny_model, corpus, queries):
    words = searched(tiny_model, corpus, queries, Retrieval("lexical"))
    assert next(iter(words["q0"])) == "d3" and next(iter(words["q1"])) == "d5"
    few = searched(tiny_model, corpus, queries, Retrieval(), SearchSettings("int8"))
    assert len(few["q0"]) == 4


def test_a_cross_encoder_judges_pairs(tiny_model, sentences):
    model = MtebCrossEncoder(LocalTexts(tiny_model), None)
    first, second = [{"text": sentences[:2]}], [{"text": [sentences[4]]}, {"text": [sentences[5]]}]
    found = model.predict(first, second, task_metadata=TASK, hf_split="t", hf_subset="d")
    alone = LocalTexts(tiny_model).relevance(sentences[1:2], sentences[5:6])
    assert found.shape == (2,) and found[1] == pytest.approx(alone[0], abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_an_instruction_of_the_data_set_follows_its_query():
    queries = Columns(id=["a", "b"], text=["x", "y"], instruction=["Only z.", None])
    assert query_texts(queries) == ["x Only z.", "y"]
