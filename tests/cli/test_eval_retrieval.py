"""`grit eval retrieval`: what it prints and writes."""

from __future__ import annotations

import json

import pytest
from cli_world import run
from retrieval_folders import beir_folder

from grit_jax.cli import eval_retrieval
from grit_jax.evaluation import judges, retrieval_run

pytestmark = pytest.mark.usefixtures("in_world")
METRICS = ("ndcg", "recall", "mrr", "map", "precision")


def test_choices_are_those_of_the_evaluation():
    """Its modules import NumPy, the command line does not."""
    assert eval_retrieval.KS == retrieval_run.KS
    assert eval_retrieval.RERANK_PROMPTS == judges.RERANK_PROMPTS


def test_an_embedding_file(capsys):
    command = "eval retrieval model --input embedding.jsonl --json"
    found = run(capsys, command).json
    assert found.keys() == {"model", "bm25", "hybrid", "task", "settings"}
    assert found["model"].pop("truncated") == 0
    names = {f"{metric}@{k}" for metric in METRICS for k in (1, 3, 5, 10, 100)}
    for name in ("model", "bm25", "hybrid"):
        assert found[name].keys() == names
        assert all(0 <= score <= 1 for score in found[name].values())
    assert (found["task"]["queries"], found["task"]["split"]) == (8, None)
    words = run(capsys, f"{command.replace(' model', ' ./absent')} --search lexical").json
    assert words["bm25"] == found["bm25"] and "model" not in words  # no model is read
    both = run(capsys, f"{command} --search hybrid --k 10").json
    assert both["hybrid"] == {
        **{f"{metric}@10": found["hybrid"][f"{metric}@10"] for metric in METRICS},
        "truncated": 0,
    }
    assert run(capsys, f"{command} --search hybrid --fusion ranks").status == 0


def test_a_folder_with_everything_beside(capsys, tmp_path):
    folder = beir_folder(tmp_path / "task")
    command = f"eval retrieval model --input {folder} --k 1 3 --instruction Find"
    files = f"--per-query {tmp_path}/q.jsonl --run-files {tmp_path}/runs --vectors {tmp_path}/v"
    said = run(capsys, f"{command} --rerank 2 --rerank-prompt paper {files} --json")
    assert said.status == 0, said.err
    found = said.json
    assert found["reranked_by_search"].keys() == {"model", "bm25", "hybrid"}
    assert found["reranked"] == found["reranked_by_search"]["hybrid"]
    assert found["task"] == {
        "name": "task",
        "split": "test",
        "queries": 3,
        "documents": 6,
        "unjudged_queries": 1,
        "missing_queries": 1,
        "missing_documents": 1,
        "queries_without_relevant": 0,
    }
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(
        f"{name}{more}.trec" for name in ("model", "bm25", "hybrid") for more in ("", "+rerank")
    )
    first = json.loads((tmp_path / "q.jsonl").read_text().splitlines()[0])
    assert first["instruction"] == "Find" and len(first["searches"]) == 6
    compared = run(
        capsys, f"{command} --vectors {tmp_path}/v --compare {tmp_path}/q.jsonl --resamples 20"
    )
    assert compared.status == 0, compared.err
    lines = compared.out.splitlines()
    assert lines[0].split() == ["model", "bm25", "hybrid"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:11]}
    assert [float(value) for value in table["ndcg@3"]] == [
        round(found[name]["ndcg@3"], 4) for name in ("model", "bm25", "hybrid")
    ]
    assert "1 judged documents are not in the corpus" in lines
    assert any(line.startswith("bm25") and line.endswith("p = 1.0000") for line in lines)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--input absent", "absent: no such file"),
        (
            "--input folder --k 10 --depth 3",
            "--depth 3: --k and --rerank need rankings of at least",
        ),
        ("--input folder --split dev", "no judgements of the split 'dev'"),
        ("--input folder --k 0", "must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named_before_the_model_is_read(capsys, tmp_path, flags, message):
    folder = beir_folder(tmp_path / "task")
    said = run(capsys, f"eval retrieval absent-model {flags}".replace("folder", str(folder)))
    assert said.status != 0 and message in said.err
