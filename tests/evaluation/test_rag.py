"""Scores of RAG answers: every layout is answered as asking it alone would."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from grit_jax.data.formats import CachedExample
from grit_jax.errors import GritError
from grit_jax.evaluation.rag import AnswerSettings, evaluate_rag
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, build_index
from grit_jax.text.answer_matching import normalise_answer, score_answer
from grit_jax.text.rag_layouts import MODES

NEW = 4


@pytest.fixture(scope="module")
def rows(tiny_model, sentences):
    """Questions whose gold answer is what the model says in one of the layouts: some matches, some
    not."""
    asker, rows = Asker(tiny_model), []
    for i in range(20):
        documents = tuple(sentences[i : i + 1 + i % 2])
        question = sentences[100 + i][:40]
        mode = ("doc", "none", "query-then-doc")[i % 3]
        gold = asker.ask(question, mode, documents=[documents], max_new_tokens=NEW)[0].answer
        rows.append(CachedExample(documents, question, gold or "nothing"))
    return rows


@pytest.mark.parametrize(
    "modes",
    [("none", "doc", "query-doc"), pytest.param(MODES, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_every_layout_over_the_rows_own_documents(tiny_model, rows, tmp_path, modes):
    path = tmp_path / "rag.jsonl"
    lines = [{"docs": list(row.docs), "text": [row.question, row.answer]} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate_rag(
        tiny_model, path, modes, settings=AnswerSettings(max_new_tokens=NEW), quiet=True
    )
    assert list(found) == list(modes)
    asker = Asker(tiny_model)
    for mode, scores in found.items():
        answers = asker.ask(
            [r.question for r in rows], mode, documents=[r.docs for r in rows], max_new_tokens=NEW
        )
        alone = [score_answer(a.answer, row.answer) for a, row in zip(answers, rows, strict=True)]
        assert scores["match"] == pytest.approx(np.mean([s.match for s in alone]))
        assert scores["exact_match"] == pytest.approx(np.mean([s.exact_match for s in alone]))
        assert scores["f1"] == pytest.approx(np.mean([s.f1 for s in alone]))
        assert (
            set(scores) == {"match", "exact_match", "f1", "seconds"} and 0 < scores["seconds"] < 10
        )
    assert found["doc"]["match"] >= 7 / 20


def test_documents_from_an_index(tiny_model, rows, sentences, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(sentences[:20]))
    )
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    found = evaluate_rag(
        tiny_model,
        rows,
        ["doc", "auto"],
        settings=AnswerSettings(max_new_tokens=NEW, instruction="Find"),
        k=2,
        index=index,
        quiet=True,
    )
    answers = Asker(tiny_model, index).ask(
        [r.question for r in rows], "doc", k=2, instruction="Find", max_new_tokens=NEW
    )
    alone = [score_answer(a.answer, row.answer).f1 for a, row in zip(answers, rows, strict=True)]
    assert found["doc"]["f1"] == pytest.approx(np.mean(alone)) and set(found) == {"doc", "auto"}


def test_a_match_is_of_the_expected_part(tiny_model, rows):
    """Of answers that are sentences, the part that counts is searched."""
    settings = AnswerSettings(max_new_tokens=NEW)
    right = [row for row in rows if len(normalise_answer(row.answer).split()) > 1]
    parts = [
        dataclasses.replace(
            row, answer=f"So it is {row.answer}", expected=normalise_answer(row.answer).split()[0]
        )
        for row in right
    ]
    whole = evaluate_rag(tiny_model, right, ["doc"], settings=settings, quiet=True)["doc"]
    found = evaluate_rag(tiny_model, parts, ["doc"], settings=settings, quiet=True)["doc"]
    unmarked = [dataclasses.replace(row, expected="") for row in parts]
    missed = evaluate_rag(tiny_model, unmarked, ["doc"], settings=settings, quiet=True)["doc"]
    assert found["match"] >= whole["match"] > 0 == missed["match"] == found["exact_match"]


@pytest.mark.slow
def test_windows_do_not_matter(tiny_model, rows, monkeypatch):
    import grit_jax.evaluation.rag as module

    whole = evaluate_rag(
        tiny_model, rows, ["doc"], settings=AnswerSettings(max_new_tokens=NEW), quiet=True
    )["doc"]
    monkeypatch.setattr(module, "WINDOW", 7)
    parts = evaluate_rag(
        tiny_model, rows, ["doc"], settings=AnswerSettings(max_new_tokens=NEW), quiet=True
    )["doc"]
    for name in ("match", "exact_match", "f1"):
        assert parts[name] == pytest.approx(whole[name])


def test_mistakes_are_named(tiny_model, rows, tmp_path):
    with pytest.raises(GritError, match="unknown mode 'docs'"):
        evaluate_rag(tiny_model, rows, ["docs"])
    with pytest.raises(GritError, match="unknown mode 'auto'"):
        evaluate_rag(tiny_model, rows, ["auto"])
    with pytest.raises(GritError, match="no question"):
        evaluate_rag(tiny_model, [])
    (tmp_path / "r.jsonl").write_text('{"docs": [], "text": ["a", "b"]}\n')
    with pytest.raises(GritError, match=r"r\.jsonl:1"):
        evaluate_rag(tiny_model, tmp_path / "r.jsonl")
