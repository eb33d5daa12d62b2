"""Scores that grow row by row: what is kept, and files of something else."""

from __future__ import annotations

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.evidence.score_file import ScoreFile

SCORED = {"weights": "a1", "rows": "b2"}


def test_rows_are_added_and_read_again(tmp_path):
    path = tmp_path / "answers.json"
    scores = ScoreFile(path, SCORED)
    assert scores.count("doc") == 0 and not path.exists()
    scores.add("doc", {"match": [1, 0], "f1": [0.5, 0.25]})
    scores.add("doc", {"match": [1], "f1": [1.0]})
    again = ScoreFile(path, SCORED)
    assert again.count("doc") == 3 and again.count("query") == 0
    assert again.values("doc", "match", 2).tolist() == [1, 0]
    assert again.values("doc", "f1", 3).tolist() == [0.5, 0.25, 1.0]
    with pytest.raises(KeyError, match="3 of 4 rows are scored"):
        again.values("doc", "match", 4)


def test_files_of_something_else_and_damaged_ones(tmp_path):
    path = tmp_path / "answers.json"
    ScoreFile(path, SCORED).add("doc", {"match": [1]})
    with pytest.raises(GritError, match="holds the scores of other weights; remove it, or choose"):
        ScoreFile(path, SCORED | {"weights": "c3"})
    path.write_text(json.dumps(SCORED | {"format": 1, "cases": [1]}))
    with pytest.raises(GritError, match="damaged; remove it to score the rows again"):
        ScoreFile(path, SCORED)
