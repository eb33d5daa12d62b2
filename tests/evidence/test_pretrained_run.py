"""What the parts of the evidence on a pretrained model share."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence_corpus import write_corpus

from grit_jax.errors import GritError
from grit_jax.evidence import pretrained_run
from grit_jax.evidence.pretrained_run import PretrainedOptions, PretrainedRun
from grit_jax.runtime.files import write_jsonl


def test_the_model_that_is_scored(tmp_path, monkeypatch):
    run = lambda base, model=None: PretrainedRun(tmp_path, PretrainedOptions(base, model))
    assert run("m", "trained").model_name == "trained"
    with pytest.raises(GritError, match="no adapter is shipped for m; or run --part cached first"):
        run("m").model_name  # noqa: B018
    (tmp_path / pretrained_run.DISTILLED_MODEL).mkdir(parents=True)
    assert Path(run("m").model_name) == tmp_path / "seed-0/distilled/model"
    monkeypatch.setattr(pretrained_run, "model_of", lambda base: "smollm2-grit")
    assert run("smollm2").model_name == "smollm2-grit"


def test_what_is_scored_and_how_much_is_left_out(sentences, tmp_path, monkeypatch):
    data = write_corpus(tmp_path / "data", sentences)
    write_jsonl(tmp_path / "chat.jsonl", [{"text": ["Hello", "Hi."]}] * 9)
    monkeypatch.setattr(pretrained_run, "TEXTS", 7)
    options = PretrainedOptions(
        "m", "m", data, chat_heldout=tmp_path / "chat.jsonl", questions=4, queries=30
    )
    run = PretrainedRun(tmp_path / "x", options)
    assert run.question_counts() == {"questions": 4, "questions_all": 6}
    assert len(run.questions.examples) == 4 and len(run.questions.corpus) == 40
    assert run.query_counts() == {"queries": 12, "queries_all": 12}
    assert run.text_counts() == {
        "texts": {"documentation": 7, "chat": 7},
        "texts_all": {"documentation": 40, "chat": 9},
    }


def test_scores_belong_to_weights_and_rows(tiny_model, sentences, tmp_path):
    data = write_corpus(tmp_path / "data", sentences)
    run = PretrainedRun(tmp_path / "x", PretrainedOptions("m", "m", data))
    run.answer_scores(tiny_model).add("doc", {"match": [1]})
    assert run.answer_scores(tiny_model).count("doc") == 1
    [file] = (tmp_path / "x/scores").glob("*/answers.json")
    assert file.parent.name == tiny_model.weights_hash[:16]
    with (data / "heldout/rag.jsonl").open("a") as rag:
        rag.write("\n")
    with pytest.raises(GritError, match="holds the scores of other rows"):
        run.answer_scores(tiny_model)
