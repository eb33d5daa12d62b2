"""Instructions and examples in prompts: what the prompts are, and what is compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from evidence_corpus import write_corpus

from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.data.lines import read_examples
from grit_jax.evaluation.rag import read_questions
from grit_jax.evidence import prompt_variants as variants
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.pydocs.passages import QUESTION_INSTRUCTION
from grit_jax.rag.generator import RagGenerator, RagPrompt
from grit_jax.text.chat import FORMATS
from grit_jax.text.rag_layouts import AFTER_CONTEXT, compose


@pytest.mark.parametrize("chat", ["grit", "smollm2"])
@pytest.mark.parametrize("mode", variants.ANSWER_LAYOUTS)
def test_the_trained_prompt_is_the_layout_itself(mode, chat, sentences, tmp_path):
    [row, *_] = read_questions(write_corpus(tmp_path, sentences) / "heldout/rag.jsonl")
    parts = variants.conversation_parts([row], mode, AFTER_CONTEXT, FORMATS[chat])
    assert tuple(parts) == compose(mode, row.question, row.docs, FORMATS[chat]).continuation


def test_examples_are_turns_with_their_documents(sentences, tmp_path):
    rows = read_questions(write_corpus(tmp_path, sentences) / "heldout/rag.jsonl")[:2]
    text = lambda mode, said: "".join(
        part.text for part in variants.conversation_parts(rows, mode, said, FORMATS["grit"])
    )
    first, last = rows
    assert text("doc-then-query", "Reply") == (
        f"<s><|user|>\n{first.docs[0]}\n\n{first.question}\n\nReply\n<|assistant|>\n{first.answer}</s>"
        f"\n<|user|>\n{last.docs[0]}\n\n{last.question}\n\nReply\n<|assistant|>\n"
    )
    assert text("doc", "") == (
        f"\n<|user|>\n{first.question}\n<|assistant|>\n{first.answer}</s>"
        f"\n<|user|>\n{last.question}\n<|assistant|>\n"
    )


@pytest.mark.slow
def test_answers_with_the_trained_prompt_are_those_of_the_layout(
    tiny_model, sentences, tmp_path, monkeypatch
):
    """And examples, whose documents are read from records before the question's own, change them."""
    few = {name: variants.ANSWER_VARIANTS[name] for name in ("trained", "3 examples")}
    monkeypatch.setattr(variants, "ANSWER_VARIANTS", few)  # each prompt's length is compiled
    monkeypatch.setattr(variants, "ANSWER_LAYOUTS", ("doc",))
    data = write_corpus(tmp_path / "data", sentences)
    rows = read_questions(data / "heldout/rag.jsonl")[:3]
    examples = read_questions(data / "train/rag.jsonl")[:3]
    generator = RagGenerator(tiny_model)
    prompts = [
        RagPrompt("doc", row.question, row.docs, tuple(generator.records(row.docs))) for row in rows
    ]
    said = generator.generate(prompts).answers
    rows = [dataclasses.replace(row, answer=text, expected="") for row, text in zip(rows, said)]
    scores = ScoreFile(tmp_path / "prompts.json", {})
    variants.score_prompts(tiny_model, rows[:2], examples, scores, max_new_tokens=16, quiet=True)
    variants.score_prompts(tiny_model, rows, examples, scores, max_new_tokens=16, quiet=True)
    report = variants.answer_report(scores, 3)
    assert report["questions"] == 3
    doc = report["variants"]["doc"]
    assert doc["trained"]["match"] == 1 and doc["trained"]["cost"]["mean"] == 0
    assert doc["3 examples"]["match"] < 1 and doc["3 examples"]["examples"] == 3
    assert doc["3 examples"]["cost"]["mean"] == pytest.approx(
        100 * (1 - doc["3 examples"]["match"])
    )


def test_instructions_of_a_query():
    example = EmbeddingExample(Text("find", "q"), (Text("", "p" * 400),), ())
    said = {
        name: variants.search_instruction(name, "Find it", example)
        for name in variants.SEARCH_VARIANTS
    }
    assert (said["trained"], said["none"], said["other task"]) == (
        "Find it",
        "",
        QUESTION_INSTRUCTION,
    )
    assert said["one example"] == f"Find it. For example, the query: q finds: {'p' * 300}"
    assert len(set(said.values())) == len(said) == 6


def test_search_with_each_instruction(tiny_model, sentences, tmp_path):
    from grit_jax.evaluation.retrieval import evaluate_retrieval

    path = write_corpus(tmp_path / "data", sentences) / "heldout/embedding.jsonl"
    source = read_examples(path, "embedding")
    rows = [source[i] for i in range(8)]
    scores = ScoreFile(tmp_path / "search.json", {})
    variants.score_search(tiny_model, rows, source[9], scores, quiet=True)
    report = variants.search_report(scores, 8)
    changed = lambda instruction: [
        dataclasses.replace(row, query=Text(instruction, row.query.text)) for row in rows
    ]
    for name, instruction in (
        ("trained", "find it"),
        ("none", ""),
        ("unrelated", variants.UNRELATED),
    ):
        expected = evaluate_retrieval(tiny_model, changed(instruction), quiet=True)["ndcg@10"]
        assert report["variants"][name]["ndcg@10"] == pytest.approx(expected), name
    costs = [variant["cost"]["mean"] for variant in report["variants"].values()]
    assert costs[0] == 0 and np.any(np.array(costs[1:]) != 0)
    # What is scored is not scored again.
    variants.score_search(None, rows, source[9], scores)
