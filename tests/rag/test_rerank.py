"""Reranking from records: against one dense pass over the texts, and through the index."""

from __future__ import annotations

import json

import dense_reference as dense
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.rag.answer import Asker
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.index import Index, IndexOptions, Retrieval, build_index
from grit_jax.rag.rerank import (
    DocumentTooLong,
    label_tokens,
    read_relevance,
    reading_prompts,
    relevance,
    relevance_prompts,
)
from grit_jax.text.rag_layouts import compose
from grit_jax.text.relevance import relevance_question

QUERY = "Which river is quiet?"


@pytest.fixture(scope="module")
def texts(sentences):
    return sentences[:6]


@pytest.fixture(scope="module")
def read(tiny_model, texts):
    """The probability of "yes", by NumPy: the same layout read without a cache."""
    model, scores = tiny_model, []
    ids = lambda parts: [i for part in model.tokenizer.encode_parts([parts])[0] for i in part]
    # An answer of a conversation in the training format: its first token.
    answer = lambda word: model.tokenizer.encode(f"{model.chat.assistant}{word}")
    yes, no = (
        next(a for a, b in zip(answer(word), answer(other)) if a != b)
        for word, other in (("yes", "no"), ("no", "yes"))
    )
    for text in texts:
        layout = compose("doc", relevance_question(QUERY), [text], model.chat)
        cached = [ids(model.chat.embed_parts("", text))]
        logits = (
            dense.greedy(model.params, model.config, cached, ids(layout.continuation), 1)
            .logits[0]
            .astype(np.float64)
        )
        scores.append(np.exp(logits[yes]) / (np.exp(logits[yes]) + np.exp(logits[no])))
    return np.array(scores)


def test_candidates_are_judged_from_their_records_as_from_their_texts(tiny_model, texts, read):
    generator = RagGenerator(tiny_model)
    prompts = relevance_prompts(QUERY, texts, generator.records(texts))
    np.testing.assert_allclose(relevance(generator, prompts), read, atol=1e-5)
    assert np.ptp(read) > 1e-3  # they differ
    assert relevance(generator, []).tolist() == []


def test_documents_without_records_are_read_as_text(tiny_model, texts):
    """As one forward pass over each prompt alone reads them."""
    model = tiny_model
    prompts = reading_prompts(model, [(QUERY, text) for text in texts])
    assert prompts.truncated == 0
    expected = []
    for text, ids in zip(texts, prompts.ids, strict=True):
        layout = compose("doc-then-query", relevance_question(QUERY), [text], model.chat)
        parts = model.tokenizer.encode_parts([layout.continuation])[0]
        assert ids == [i for part in parts for i in part]
        yes, no = label_tokens(model)
        logits = np.asarray(model(np.asarray([ids])).logits)[0, -1].astype(np.float64)
        expected.append(np.exp(logits[yes]) / (np.exp(logits[yes]) + np.exp(logits[no])))
    np.testing.assert_allclose(read_relevance(model, prompts.ids), expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3 and read_relevance(model, []).tolist() == []


def test_a_document_is_cut_to_what_its_query_leaves(tiny_model, texts):
    context = tiny_model.config.context_length
    pairs = [(QUERY, texts[0]), (QUERY, "stone " * context)]
    with pytest.raises(DocumentTooLong, match=r"documents\[1\]: \d+ tokens, and with the query"):
        reading_prompts(tiny_model, pairs)
    for most in (0, 10**6 + context):
        cut = reading_prompts(tiny_model, pairs, most)
        assert cut.truncated == 1 and len(cut.ids[1]) == context
    assert cut.ids[0] == reading_prompts(tiny_model, pairs[:1]).ids[0]
    three = reading_prompts(tiny_model, pairs, 3)
    assert three.truncated == 2 and len(three.ids[0]) == len(three.ids[1])


@pytest.fixture(scope="module")
def indices(tiny_model, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank")
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kv in ("native", "int8", "none"):
        build_index(tiny_model, folder / "c.jsonl", folder / kv, IndexOptions(kv=kv), quiet=True)
    return {kv: Index.open(folder / kv, tiny_model) for kv in ("native", "int8", "none")}


# int8 differs by its own error, measured here: 0.009 between probabilities of 0.08 to 0.71.
@pytest.mark.parametrize("kv, tolerance", [("native", 1e-5), ("int8", 0.02), ("none", 1e-5)])
def test_documents_of_an_index_are_reranked(tiny_model, indices, read, kv, tolerance, capsys):
    asker = Asker(tiny_model, indices[kv])
    found = asker.ask(QUERY, "doc", k=6, max_new_tokens=1)[0]
    searched = {document["id"]: document["score"] for document in found.documents}
    [answer] = asker.ask(QUERY, "doc", k=4, retrieval=Retrieval(rerank=6), max_new_tokens=1)
    ids = [document["id"] for document in answer.documents]
    if kv != "int8":  # two candidates are closer than its error
        assert ids == [f"d{i}" for i in np.argsort(-read)[:4]]
    for document in answer.documents:
        assert document["score"] == pytest.approx(read[int(document["id"][1:])], abs=tolerance)
        assert document["search_score"] == pytest.approx(searched[document["id"]], abs=1e-6)
    assert answer.timings["rerank"] > 0 and found.timings["rerank"] == 0
    assert all("search_score" not in document for document in found.documents)
    assert bool(answer.warnings) == (kv == "none")  # its records are computed


def test_only_the_first_candidates_are_reranked(tiny_model, indices, read):
    asker = Asker(tiny_model, indices["native"])
    found = asker.ask(QUERY, "doc", k=3, max_new_tokens=1)[0].documents
    first = sorted((int(document["id"][1:]) for document in found), key=lambda i: -read[i])
    [answer] = asker.ask(QUERY, "doc", retrieval=Retrieval(rerank=3), max_new_tokens=1)
    assert [document["id"] for document in answer.documents] == [f"d{first[0]}"]


def test_labels_that_begin_alike(tiny_model, monkeypatch):
    generator = RagGenerator(tiny_model)
    yes, no = label_tokens(generator.model)
    assert tiny_model.tokenizer.decode([yes])[:1] == "y" and yes != no
    monkeypatch.setattr("grit_jax.rag.rerank.LABELS", ("yes", "yes"))
    with pytest.raises(GritError, match="begins 'yes' and 'yes' with the same token"):
        label_tokens(generator.model)
    with pytest.raises(GritError, match="rerank: expected 0 or more candidates, got -1"):
        Retrieval(rerank=-1)
