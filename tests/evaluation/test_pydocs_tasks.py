"""lm-eval tasks from the documentation: their data. Runs are in tests/peers/test_lm_tasks.py."""

from __future__ import annotations

import json

import pytest
import yaml
from cli_world import run

from grit_jax.errors import GritError
from grit_jax.evaluation.pydocs_tasks import FEWSHOT, kind_of, question_rows, write_tasks
from grit_jax.pydocs.questions import PHRASINGS


def line(question: str, answer: str) -> dict:
    return {"docs": [f"document of {answer}"], "text": [question, answer]}


def default(name: str, answer: str) -> dict:
    return line(f"What is the default value of `{name}` in `m.{name}`?", answer)


def test_kinds():
    for kind, phrasings in PHRASINGS.items():
        for phrasing in phrasings:
            assert kind_of(phrasing.format(what="a.b", id="m.f")) == kind
    assert kind_of("Who?") == "other"


def test_choices_are_answers_of_the_same_kind():
    lines = [default(f"p{i}", str(i)) for i in range(6)]
    lines += [default("again", "0."), line("What does `m.f` return?", "a list")]
    rows = question_rows(lines, 4, 0)
    assert len(rows) == 7  # too few answers of the kind of the last
    for row, given in zip(rows, lines):
        assert row["choices"][row["answer"]] == given["text"][1] and row["kind"] == "default"
        assert row["document"] == given["docs"][0]
        assert len(set(row["choices"])) == 4 and "a list" not in row["choices"]
    again = rows[-1]["choices"]
    assert not {"0", "0."} <= set(again)  # the same answer in another form
    assert question_rows(lines, 4, 0) == rows != question_rows(lines, 4, 1)
    assert len({row["answer"] for row in rows}) > 1
    whole = question_rows([row | {"answer": row["text"][1]} for row in lines], 4, 0)
    assert whole == rows  # sentences around the answer, and the answer beside them


@pytest.fixture
def corpus(tmp_path):
    """What `grit data pydocs` writes, as far as the tasks read it."""
    folder = tmp_path / "corpus" / "heldout"
    folder.mkdir(parents=True)
    lines = [default(f"p{i}", str(i)) for i in range(FEWSHOT + 5)]
    (folder / "rag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "documents.jsonl").write_text('{"id": "a", "title": "a", "text": "b"}\n')
    return tmp_path / "corpus"


def test_folder(corpus, tmp_path, capsys):
    ended = run(capsys, f"data lm-tasks --input {corpus} --output {tmp_path}/tasks")
    assert ended.status == 0 and "5 questions and 16 examples, 1 documents; 0 quest" in ended.out
    rows = (tmp_path / "tasks/test.jsonl").read_text().splitlines()
    assert len(rows) == 5 and json.loads(rows[0])["question"]
    configs = {p.name: p.read_text() for p in (tmp_path / "tasks").glob("*.yaml")}
    named = {
        yaml.safe_load(text.replace("!function ", ""))["task"]
        for name, text in configs.items()
        if name != "pydocs.yaml"
    }
    assert named == set(yaml.safe_load(configs["pydocs.yaml"])["task"])
    assert str(tmp_path) not in "".join(configs.values())  # the folder may be moved


def test_errors(corpus, tmp_path):
    with pytest.raises(GritError, match="no heldout/rag.jsonl; expected the folder that grit data"):
        write_tasks(tmp_path, tmp_path / "tasks")
    with pytest.raises(GritError, match="0 questions are too few"):
        write_tasks(corpus, tmp_path / "tasks", choices=40)
