"""From retrieved documents to prompts, and to the JSON of an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_model import document_kv

from grit_jax.rag.question_batch import QuestionBatch, RetrievedDocument
from grit_jax.text.rag_layouts import MODES

DOCUMENTS = [RetrievedDocument("a", "text a", 0.5, 3), RetrievedDocument("b", "text b")]


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_has_what_its_layout_reads(mode):
    records = {d.text: document_kv([1, i]) for i, d in enumerate(DOCUMENTS)}
    query = document_kv([9])
    batch = QuestionBatch(["who?"], [DOCUMENTS], [query], [mode], [[]])
    [prompt] = batch.prompts(records if mode in ("doc", "query-doc", "doc-query") else {})
    assert (prompt.mode, prompt.question, prompt.documents) == (mode, "who?", ("text a", "text b"))
    cached = mode in ("doc", "query-doc", "doc-query")
    assert prompt.records == (tuple(records.values()) if cached else ())
    assert prompt.query is (query if mode in ("query", "query-doc", "doc-query") else None)


def test_a_question_with_the_turns_before_it():
    turns = ("first?", "yes", "and who?")
    batch = QuestionBatch(["who?"], [DOCUMENTS], None, ["doc-then-query"], [[]], [turns])
    [prompt] = batch.prompts({})
    assert (prompt.question, prompt.history) == ("and who?", ("first?", "yes"))


def test_a_document_as_json():
    assert [document.shown() for document in DOCUMENTS] == [
        {"id": "a", "score": 0.5},
        {"id": "b", "score": None},
    ]
    reranked = dataclasses.replace(DOCUMENTS[0], score=np.pi, search_score=0.25)
    assert reranked.shown() == {"id": "a", "score": 3.141593, "search_score": 0.25}
