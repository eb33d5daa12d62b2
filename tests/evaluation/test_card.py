"""An evaluation card: figures of each kind of record, beside the paper's."""

from __future__ import annotations

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.card import EvalRecord, figures, make_card, read_record, write_record

RETRIEVAL = {
    "model": {"ndcg@10": 0.51234, "recall@10": 0.6, "truncated": 0},
    "bm25": {"ndcg@10": 0.4, "recall@10": 0.5},
    "reranked": {"ndcg@10": 0.52, "recall@10": 0.6},
    "reranked_by_search": {"model": {"ndcg@10": 0.52, "recall@10": 0.6}},
    "instructions": {"metric": "ndcg@10", "all": {"cost": 0.031, "p": 0.01}},
    "task": {"name": "scifact", "queries": 300, "documents": 5183},
}
RESULTS = {
    "retrieval": RETRIEVAL,
    "perplexity": {"perplexity": 7.1239, "truncated": 0},
    "rag": {"none": {"match": 0.2, "f1": 0.1}, "doc": {"match": 0.3338, "f1": 0.2}},
    "mteb": {
        "model": "m",
        "mean": 0.65,
        "by_type": {"STS": 0.8, "Retrieval": 0.5},
        "tasks": [
            {"task": "STS12", "type": "STS", "metric": "cosine_spearman", "score": 0.8},
            {"task": "SciFact", "type": "Retrieval", "metric": "ndcg_at_10", "score": 0.5},
        ],
    },
    "lm": {
        "model": "m",
        "results": {
            "grit_gsm8k": {"alias": "g", "exact_match,none": 0.5, "exact_match_stderr,none": 0.1},
            "wiki": {"word_perplexity,none": 12.5, "bits_per_byte,none": 0.9},
        },
    },
}


def record(kind):
    return EvalRecord(
        kind, "some/model", f"grit eval {kind} x", "2026-01-01T00:00:00Z", RESULTS[kind]
    )


def found(kind):
    return {(f.data, f.name): (f.shown, f.paper) for f in figures(record(kind))}


def test_the_figures_of_each_kind():
    data = "scifact, 300 queries, 5183 documents"
    assert found("retrieval") == {
        (data, "nDCG@10, dense"): ("51.23", 57.4),
        (data, "recall@10, dense"): ("60.00", None),
        (data, "nDCG@10, BM25"): ("40.00", None),
        (data, "recall@10, BM25"): ("50.00", None),
        (data, "nDCG@10, dense, reranked"): ("52.00", 57.9),
        (data, "recall@10, dense, reranked"): ("60.00", None),
        (data, "ndcg@10 lost by another domain's instruction"): ("3.10", None),
    }
    assert list(found("perplexity").values()) == [("7.124", None)]
    assert found("rag") == {
        ("questions file", "match, layout none"): ("20.00", 21.0),
        ("questions file", "match, layout doc"): ("33.38", 33.38),
    }
    assert found("mteb") == {
        ("STS12", "cosine_spearman"): ("80.00", None),
        ("SciFact", "ndcg_at_10"): ("50.00", None),
        ("mean of these tasks", "STS"): ("80.00", 83.4),
        ("mean of these tasks", "Retrieval"): ("50.00", 57.4),
        ("mean of these tasks", "all"): ("65.00", 66.8),
    }
    assert found("lm") == {
        ("grit_gsm8k", "exact_match"): ("50.00", 57.5),
        ("wiki", "word_perplexity"): ("12.500", None),
        ("wiki", "bits_per_byte"): ("0.900", None),
    }


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, "rag", "some/model", "grit eval rag x", RESULTS["rag"])
    read = read_record(path)
    assert (read.kind, read.model, read.command) == ("rag", "some/model", "grit eval rag x")
    assert read.result == RESULTS["rag"]
    path.write_text(json.dumps(RESULTS["rag"]))
    with pytest.raises(GritError, match="not a record of grit eval; make one with"):
        read_record(path)


def test_a_card_of_all(tmp_path):
    card = make_card([record(kind) for kind in RESULTS])
    assert card["models"] == ["some/model"] and len(card["runs"]) == 5
    assert {figure["run"] for figure in card["figures"]} == {1, 2, 3, 4, 5}
    assert card["runs"][2]["command"] == "grit eval rag x"
    with pytest.raises(GritError, match=r"run 1 \(grit eval rag\): its record has no score"):
        make_card([EvalRecord("rag", "m", "c", "d", {})])
    with pytest.raises(GritError, match="a card has no figures of"):
        make_card([EvalRecord("odd", "m", "c", "d", {})])


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("mteb", {"tasks": [{"name": "STS12"}]}),
        ("mteb", {"tasks": 5}),
        ("rag", {"rows": [{"match": 0.5}]}),
        ("retrieval", {"task": [], "model": {}}),
        ("lm", {"results": {"task": 0.5}}),
    ],
)
def test_a_damaged_record(kind, result):
    broken = EvalRecord(kind, "m", "grit eval", "2026-01-01T00:00:00Z", result)
    with pytest.raises(GritError, match=rf"run 1 \(grit eval {kind}\): its record is damaged"):
        make_card([broken])


def test_a_record_with_values_of_other_kinds(tmp_path):
    write_record(tmp_path / "r.json", "rag", "m", "grit eval", {"none": {"match": 1.0}})
    content = json.loads((tmp_path / "r.json").read_text())
    for name in ("result", "model"):
        (tmp_path / "r.json").write_text(json.dumps(content | {name: [1]}))
        with pytest.raises(GritError, match=f"r.json: the record is damaged \\('{name}'\\)"):
            read_record(tmp_path / "r.json")
    with pytest.raises(GritError, match="cannot be read \\(Is a directory\\)"):
        read_record(tmp_path)
