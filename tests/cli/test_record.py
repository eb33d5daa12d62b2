"""`--record` and `grit eval card`: from runs to a card with their commands."""

from __future__ import annotations

import json

import pytest
from cli_world import run

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
