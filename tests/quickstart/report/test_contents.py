"""report.json: what it holds, and how it is read."""

from __future__ import annotations

import json

import pytest
from report_fixture import made_up_json, made_up_report

from grit_jax.errors import GritError
from grit_jax.quickstart.report import Report


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made_up_report().to_dict()))
    assert Report.read(path) == made_up_report()
    assert json.loads(path.read_text()) == made_up_json()


def test_the_keys_that_scripts_rely_on():
    tree = made_up_report().to_dict()
    for key, inner in {
        "corpus": {"documents", "train", "held_out"},
        "model": {"parameters"},
        "training": {"steps", "seconds", "tokens", "loss_first", "loss_last"},
        "retrieval": {"trained", "untrained", "bm25"},
        "language": {"perplexity_before", "perplexity_after"},
        "rag": {
            "none",
            "query-then-doc",
            "doc-then-query",
            "doc",
            "query",
            "query-doc",
            "doc-query",
        },
    }.items():
        assert inner <= tree[key].keys()
    assert set(tree["rag"]["doc"]) >= {"match", "seconds"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": 7},
            "written by another version of grit_jax .0.0.0-fixture.; remove the folder",
        ),
        ({"seed": "0"}, "report.json: seed: expected int, got '0'"),
        ({"rag": {"doc": {}}}, "rag.doc.match: this key is missing"),
        ({"unheard": 1}, "report.json: unheard: unknown key"),
        ({"timings": {"a": True}}, "timings.a: expected float, got True"),
    ],
)
def test_a_report_that_is_not_ours_is_refused(change, message, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**made_up_json(), **change}))
    with pytest.raises(GritError, match=message):
        Report.read(path)
