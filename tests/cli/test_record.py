"""`--record` and `grit eval card`: from runs to a card with their commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import run

from grit_jax.errors import GritError

pytestmark = pytest.mark.usefixtures("in_world")


def test_runs_become_a_card(capsys, tmp_path):
    words = (
        f"eval retrieval model --input embedding.jsonl --search lexical --record {tmp_path}/a.json"
    )
    other = f"eval perplexity model --input generative.jsonl --record {tmp_path}/b.json"
    bm25 = run(capsys, f"{words} --json").json["bm25"]
    assert run(capsys, other).status == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["command"] == f"grit {words} --json" and record["result"]["bm25"] == bm25
    said = run(capsys, f"eval card {tmp_path}/a.json {tmp_path}/b.json --output {tmp_path}/card")
    assert said.status == 0, said.err
    assert said.out == (tmp_path / "card/card.md").read_text()
    assert f"grit {other}" in said.out and f"{100 * bm25['ndcg@10']:.2f}" in said.out
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == [
        "card.html",
        "card.json",
        "card.md",
    ]
    assert run(capsys, "eval card embedding.jsonl").status != 0


@pytest.mark.parametrize("kind", ["retrieval", "perplexity", "rag", "lm", "mteb"])
def test_a_record_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, kind):
    """The model is not there, and is not looked for; neither are lm-eval and mteb."""
    words = "--tasks t" if kind in ("lm", "mteb") else "--input embedding.jsonl"
    for name, what in (
        (tmp_path / "absent" / "a.json", "cannot be written (No such file or directory)"),
        (tmp_path, "is a folder"),
    ):
        said = run(capsys, f"eval {kind} no-model {words} --record {name}")
        assert (said.status, said.out) == (2, "")
        assert said.lines[-1].startswith(f"grit eval {kind}: {name}: {what}"), said.err
    assert not list(tmp_path.iterdir())


def test_results_of_queries_have_a_file_of_their_own(capsys, tmp_path):
    words = "eval retrieval no-model --input embedding.jsonl --per-query"
    same = run(capsys, f"{words} {tmp_path}/a --record {tmp_path}/a")
    assert same.status == 2 and "named by --record and --per-query" in same.lines[-1]
    absent = run(capsys, f"{words} {tmp_path}/absent/a")
    assert absent.status == 2 and "absent/a: cannot be written" in absent.lines[-1]
    kept = Path("embedding.jsonl").read_bytes()
    for flag in ("--per-query", "--record"):
        said = run(
            capsys, f"eval retrieval no-model --input embedding.jsonl {flag} embedding.jsonl"
        )
        assert said.status == 2 and "is an input as well" in said.lines[-1]
    assert Path("embedding.jsonl").read_bytes() == kept


def test_a_result_is_printed_even_if_its_record_fails(capsys, monkeypatch, tmp_path):
    def full(*args):
        raise GritError("no space")

    monkeypatch.setattr("grit_jax.evaluation.card.write_record", full)
    words = "eval retrieval model --input embedding.jsonl --search lexical --json --record"
    said = run(capsys, f"{words} {tmp_path}/a.json")
    assert said.status == 2 and "bm25" in json.loads(said.out)
