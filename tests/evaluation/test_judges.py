"""The original's rerank prompt, character for character, and its score; judgements from records."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.evaluation.judges import PromptJudge, RecordJudge
from grit_jax.evaluation.retrieval_data import Document
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.rerank import relevance, relevance_prompts

DOCUMENTS = [Document("Copper", "a lantern"), Document("", "x" * 700), Document(None, "river")]


def test_the_prompt_of_the_original(tiny_model):
    """The prompt of `scripts/AbsTaskRetrieval.py` of the original's repository, with its
    `corpus[id]['title'] + ' ' + corpus[id]['text'][:600]` and `query[:600]`."""
    judge = PromptJudge(tiny_model)
    expected = (
        "<|user|>\nGiven a query and a passage, judge whether the passage is relevant to the query"
        " or not.\n\nQuery: who {passage} lit it?\nPassage: {}\n\nAnswer with yes if the passage is"
        " relevant to the query, and no otherwise.\n<|assistant|>\nAnswer:"
    )
    shown = ["Copper a lantern", " " + "x" * 600, "river"]
    for document, passage in zip(DOCUMENTS, shown):
        [ids] = judge.prompt_ids("who {passage} lit it?", [document])
        whole = expected.replace("{}", passage)
        assert tiny_model.tokenizer.decode(ids, skip_special=False) == "<s>" + whole
    assert judge.turn("Z" * 700, DOCUMENTS[0]).count("Z") == 600
    arguana = PromptJudge(tiny_model, "paper-arguana").turn("one", DOCUMENTS[2])
    assert arguana == (
        "Provided two debate paragraphs, check if they are about the same topic, but contain"
        " counter-arguments.\n\nParagraph 1: one\nParagraph 2: river\n\nAnswer with yes if paragraph"
        " 1 and paragraph 2 are about the same topic, but contain counter-arguments; Answer with no"
        " otherwise."
    )


def test_the_score_is_the_logit_of_yes(tiny_model):
    judge = PromptJudge(tiny_model)
    prompts = judge.prompt_ids("who lit it?", DOCUMENTS)
    shown = tiny_model.tokenizer.decode([*prompts[0], judge.yes]).rpartition("Answer:")[2]
    assert shown and " yes".startswith(shown)
    scores = judge.scores("who lit it?", [0, 1, 2], DOCUMENTS)
    for ids, score in zip(prompts, scores):
        output = tiny_model(np.array([ids]), np.ones((1, len(ids)), np.int32), mode="causal")
        assert score == pytest.approx(float(output.logits[0, -1, judge.yes]), abs=1e-4)


def test_records_give_what_each_document_gives_alone(tiny_model):
    judge = RecordJudge(tiny_model)
    documents = [Document("Copper", "a lantern"), Document("", "river stone")]
    judge.scores("q", [7], documents[1:])  # its record is kept under its number
    scores = judge.scores("who lit it?", [3, 7], documents)
    generator = RagGenerator(tiny_model)
    texts = ["Copper a lantern", "river stone"]
    prompts = relevance_prompts("who lit it?", texts, generator.records(texts))
    alone = [relevance(generator, [prompt])[0] for prompt in prompts]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
