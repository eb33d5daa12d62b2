"""What `grit mine` prints and writes when all is well."""

from __future__ import annotations

import json

import pytest
from cli_world import run

from grit_jax.data.lines import read_examples

pytestmark = pytest.mark.usefixtures("in_world")


@pytest.mark.slow
def test_mine_from_a_corpus_then_from_its_index(capsys, tmp_path):
    mine = "mine model --input embedding.jsonl --negatives 2 --relative-margin none"
    said = run(
        capsys, f"{mine} --corpus corpus.jsonl --index {tmp_path}/i", "--output", tmp_path / "a"
    )
    assert said.status == 0, said.err
    assert said.out.startswith("16 negatives for 8 of 8 queries")
    assert said.out.endswith(f"\n{tmp_path}/a\n")
    rows = read_examples(tmp_path / "a", "embedding")
    assert all(len(rows[i].negatives) == 3 and rows[i].scores is None for i in range(8))
    judged = run(
        capsys,
        f"{mine} --index {tmp_path}/i --judge --replace --keep-without --json",
        "--output",
        tmp_path / "b",
    )
    summary = judged.json
    assert summary["queries"] == summary["lines"] == summary["positives_judged"] == 8
    assert sum(summary["negatives_per_line"].values()) == 8 and summary["judged"] >= 8
    dropped = summary["dropped"]
    assert dropped["a positive of the query"] == 8 and "too close" not in str(dropped)
    rows = [json.loads(line) for line in (tmp_path / "b").read_text().splitlines()]
    assert [len(row["scores"]) for row in rows] == [1 + len(row["neg"]) for row in rows]


def test_mine_from_the_passages_of_the_input(capsys, tmp_path):
    said = run(
        capsys, f"mine model --input embedding.jsonl --output {tmp_path}/x --range 1:9 --margin 0"
    )
    assert said.status == 0 and (tmp_path / "x").exists(), said.err
    assert (tmp_path / "x.index" / "index.json").exists()
    assert len((tmp_path / "x.index.jsonl").read_text().splitlines()) == 9
