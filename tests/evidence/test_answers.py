"""Answers by layout, number and order of documents, and compression."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from evidence_corpus import write_corpus
from evidence_scores import answer_scores

from grit_jax.data.distractors import Distractors
from grit_jax.data.formats import CachedExample
from grit_jax.evidence import answers
from grit_jax.evidence.answers import AnswerCase, Questions, score_cases
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import RagGenerator, RagPrompt

MODES = ("query-then-doc", "doc-then-query", "doc", "query-doc", "doc-query")


def test_the_cases():
    cases = answers.document_cases()
    keys = [case.key for case in cases]
    assert len(set(keys)) == len(keys) == 1 + 3 * 5 + 2 * 4 and keys[0] == "none"
    assert "doc, k = 5, reversed" in keys and "query-then-doc, k = 3, reversed" not in keys
    codecs = [case.key for case in answers.codec_cases()]
    assert len(codecs) == 12 and codecs[:2] == ["doc, k = 1", "doc, k = 1, int8"]
    # Native records over one document are scored once for both parts.
    assert {key for key in codecs if "int" not in key and "pca" not in key} < set(keys)


@pytest.mark.slow
def test_answers_in_a_case_are_those_of_its_documents_in_its_order(
    tiny_model, sentences, tmp_path, monkeypatch
):
    """Each question's expected answer is what the model says over three documents in reversed
    order: that case matches every time, and the others do not."""
    questions = Questions.read(write_corpus(tmp_path / "data", sentences) / "heldout")
    rows = [Distractors(questions.corpus).among(row, 3) for row in questions.examples[:5]]
    generator, sampling = RagGenerator(tiny_model), Sampling(max_new_tokens=6)
    prompts = [
        RagPrompt("doc", row.question, row.docs[::-1], tuple(generator.records(row.docs[::-1])))
        for row in rows
    ]
    said = generator.generate(prompts, sampling).answers
    assert all(said) and all(row.docs != row.docs[::-1] for row in rows)
    examples = [
        dataclasses.replace(row, answer=text, expected="")
        for row, text in zip(questions.examples, said)
    ]
    cases = [AnswerCase("doc", 3, "reversed"), AnswerCase("doc", 3), AnswerCase("none", 0)]
    monkeypatch.setattr(answers, "BLOCK", 2)
    score = lambda count, scores: score_cases(
        tiny_model,
        cases,
        dataclasses.replace(questions, examples=examples[:count]),
        scores,
        max_new_tokens=6,
        quiet=True,
    )
    path = tmp_path / "answers.json"
    score(3, ScoreFile(path, {}))  # a block and a half
    # A killed run: the second block of the last cases is missing.
    generate, calls = RagGenerator.generate, []

    def once(self, prompts, sampling):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, sampling)

    monkeypatch.setattr(RagGenerator, "generate", once)
    with pytest.raises(KeyboardInterrupt):
        score(5, ScoreFile(path, {}))
    score(5, ScoreFile(path, {}))
    assert calls == [1, 1, 1, 1, 1, 1, 1]  # rows 3 and 4 of three cases, one of them twice
    scores = ScoreFile(path, {})
    match = {case.key: scores.values(case.key, "match", 5) for case in cases}
    assert match["doc, k = 3, reversed"].tolist() == [1] * 5
    assert match["doc, k = 3"].sum() < 5 and match["none"].sum() < 5
    assert scores.values("doc, k = 3, reversed", "f1", 5).tolist() == [1] * 5


def test_costs_by_hand(tmp_path):
    scores = answer_scores(tmp_path)
    by = {cost["claim"]: cost for cost in answers.document_costs(scores)}
    assert len(by) == 3 * 4 + 2 * 5
    doc = by["doc, k = 5, beside doc-then-query"]  # the better of both reading layouts
    assert (doc["mean"], doc["limit"], doc["outcome"]) == (0, 3.0, "within")
    bad = by["query-doc, k = 1, beside doc-then-query"]
    assert (bad["mean"], bad["limit"], bad["outcome"]) == (20, 2.0, "beyond")
    assert by["query-doc, k = 3, beside doc-then-query"]["limit"] is None
    turned = by["doc, k = 3: reversed beside forward"]
    assert (turned["mean"], turned["outcome"]) == (2, None) and turned["low"] >= 0
    together = by["all cached layouts, k = 1, beside doc-then-query"]
    assert together["mean"] == pytest.approx(20 / 3) and together["outcome"] == "beyond"
    codecs = {cost["claim"]: cost for cost in answers.codec_costs(scores)}
    assert len(codecs) == 12 and codecs["doc: int8 beside native"]["outcome"] == "within"
    int4 = codecs["doc: int4 beside native"]
    assert (int4["mean"], int4["outcome"]) == (3, "not decided") and int4["low"] < 1 < int4["high"]
    summary = scores.summary(answers.codec_cases())["doc, k = 1, int4"]
    assert summary["match"] == summary["f1"] == 0.77
    assert summary["standard_error"] == pytest.approx(np.sqrt(0.77 * 0.23 / 99))


def test_costs_of_leaving_distillation_out(tmp_path):
    better, worse = answer_scores(tmp_path / "a"), answer_scores(tmp_path / "b", lambda case: 60)
    by = {cost["claim"]: cost["mean"] for cost in answers.distillation_costs(better, worse)}
    assert len(by) == 2 * 5 + 1
    assert by["doc-then-query (no cache), k = 3, reversed"] == 18
    assert by["all cached layouts, k = 1"] == pytest.approx((20 + 0 + 20) / 3)
    # Ten orders and numbers of documents: 3 forward, 2 reversed, which is 2 points worse.
    assert by["all cached layouts, every k and order"] == pytest.approx(40 / 3 - 2 * 2 / 5)


def test_the_part_that_must_be_in_an_answer():
    row = CachedExample(("d",), "How many?", "There are three of them.", expected="three")
    scores = answers.answer_scores([row, row], ["I count three here.", "There are 3 of them."])
    assert scores["match"] == [1, 0] and scores["f1"] == [pytest.approx(2 / 9), pytest.approx(0.8)]
