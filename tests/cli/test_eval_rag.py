"""`grit eval rag`: what it prints and writes. Behind a URL: tests/evaluation/test_rag_endpoint.py."""

from __future__ import annotations

import json

import pytest
from cli_world import run

from grit_jax.cli.eval_rag import score_lines

pytestmark = pytest.mark.usefixtures("in_world")


def test_one_variant_of_each_layout(capsys):
    rag = "eval rag model --input rag.jsonl --modes none --max-new-tokens 2"
    found = run(capsys, f"{rag} --json").json
    assert found.keys() == {"none"} and found["none"].keys() == {
        "match",
        "exact_match",
        "f1",
        "seconds",
        "truncated",
    }
    shown = run(capsys, rag).out
    assert shown.startswith("none  ") and "match 0." in shown and len(shown.splitlines()) == 1


def test_lines_of_scores():
    """A warning names the number of texts that were cut."""
    assert score_lines({"perplexity": 1.25, "truncated": 3}) == "perplexity".ljust(16) + " 1.2500"
    scores = {"doc": {"match": 0.5, "f1": 0.25, "truncated": 1}}
    assert score_lines(scores) == "doc".ljust(16) + "match 0.5000  f1 0.2500"


def test_eval_rag_in_one_table(capsys, tmp_path):
    rag = (
        "eval rag model --input rag.jsonl --modes none doc --max-new-tokens 2 --k 2 --kv"
        " native,int8"
    )
    said = run(capsys, f"{rag} --json --output {tmp_path}/table --corpus corpus.jsonl")
    found = said.json
    assert said.status == 0 and (found["questions"], found["corpus"], found["seed"]) == (3, 9, 0)
    assert [(row["mode"], row["k"], row["kv"], row["positions"]) for row in found["rows"]] == [
        ("none", None, None, None),
        ("doc", 2, "native", "running"),
        ("doc", 2, "int8", "running"),
    ]
    assert json.loads((tmp_path / "table/rag.json").read_text()) == found
    assert len((tmp_path / "table/table.md").read_text().splitlines()) == 2 + 3 + 2
