"""Answers over given documents: their order, what fits the context, and what a layout needs."""

from __future__ import annotations

import dataclasses

import pytest
from dense_answer import dense_answer

from grit_jax.errors import GritError
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import DocumentsRead, RagGenerator, RagPrompt

NEW = 5
QUESTION = "Which river is quiet?"


def test_the_order_of_query_and_documents_counts(tiny_model, sentences):
    """Positions run in the order of the layout: query-doc is not doc-query, nor d1 d2 the same as
    d2 d1."""
    generator = RagGenerator(tiny_model)
    texts = [sentences[3], f"Amber {sentences[5]}"]
    query, records = generator.records([QUESTION])[0], generator.records(texts)
    prompts = [
        RagPrompt(
            mode, QUESTION, tuple(texts[i] for i in order), tuple(records[i] for i in order), query
        )
        for mode in ("query-doc", "doc-query", "doc")
        for order in ([0, 1], [1, 0])
    ]
    answers = generator.generate(prompts, Sampling(max_new_tokens=NEW)).answers
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == dense_answer(tiny_model, prompt.mode, QUESTION, prompt.documents, NEW)
    assert len(set(answers)) > 3


def test_long_documents_are_cut_alike_in_every_layout(tiny_model, sentences):
    generator, text = RagGenerator(tiny_model, max_length=20), " ".join(sentences[:5])
    record = generator.records([text])[0]
    assert len(record.tokens) == 20
    prompt = generator.continuations([RagPrompt("doc-then-query", QUESTION, (text,))])[0]
    tags = len(tiny_model.tokenizer.encode_parts([tiny_model.chat.embed_parts("", "")])[0][0])
    body = record.tokens[tags:].tolist()
    assert any(prompt[i : i + len(body)] == body for i in range(len(prompt)))
    whole = RagGenerator(tiny_model, max_length=512).continuations(
        [RagPrompt("doc-then-query", QUESTION, (text,))]
    )[0]
    assert len(prompt) < len(whole)


def test_what_is_read_of_documents_that_do_not_fit(tiny_model, sentences):
    """The last ones are left out first; the one that is left is cut."""
    texts = [text for text in sentences if 60 < len(text) < 80][:2]
    config = dataclasses.replace(tiny_model.config, max_position_embeddings=160)
    model = type(tiny_model)(config, tiny_model.params, tiny_model.tokenizer, tiny_model.chat)
    generator, sampling = RagGenerator(model, max_length=160), Sampling(max_new_tokens=NEW)
    long = " ".join(sentences[:20])
    prompts = [
        RagPrompt("none", QUESTION),
        RagPrompt("doc-then-query", QUESTION, tuple(texts[:1])),
        RagPrompt("doc-then-query", QUESTION, (texts[0], long)),
        RagPrompt("doc-then-query", QUESTION, (long,)),
    ]
    answers = generator.generate(prompts, sampling)
    assert answers.read[:3] == [DocumentsRead(0), DocumentsRead(1), DocumentsRead(1)]
    assert answers.answers[1] == answers.answers[2]
    other = len(generator.continuations([dataclasses.replace(prompts[3], documents=("",))])[0])
    assert answers.read[3] == DocumentsRead(1, 160 - NEW - other)
    with pytest.raises(GritError, match="with the template and 160 new tokens it does not fit"):
        generator.generate(prompts[:1], Sampling(max_new_tokens=160))


def test_a_layout_without_the_records_that_it_reads(tiny_model, sentences):
    generator = RagGenerator(tiny_model)
    [record] = generator.records(sentences[:1])
    for prompt, message in (
        (RagPrompt("doc", QUESTION, (sentences[0],)), "1 documents, 0 records"),
        (RagPrompt("query", QUESTION, (sentences[0],)), "layout query needs the question's record"),
        (RagPrompt("doc-query", QUESTION, (sentences[0],), (record,)), "doc-query needs the quest"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.generate([prompt])
    with pytest.raises(GritError, match="'doc' needs at least one document"):
        generator.generate([RagPrompt("doc", QUESTION)])
