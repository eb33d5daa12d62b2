"""What is known before mteb runs, and how its scores are reported. Runs are in
tests/peers/test_mteb.py."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.mteb import (
    MtebScores,
    MtebSettings,
    TaskScore,
    evaluate_mteb,
    model_facts,
)
from grit_jax.evaluation.mteb_instructions import TaskInstruction
from grit_jax.rag.search.exact import SearchSettings
from grit_jax.rag.search.hybrid import Retrieval


def test_settings_that_are_refused():
    with pytest.raises(GritError, match="--protocol: expected encoder, search, cross-encoder, got"):
        MtebSettings(protocol="dense")
    with pytest.raises(GritError, match="add --protocol search"):
        MtebSettings(search=SearchSettings("int8"))


def test_mteb_is_asked_for_where_it_is_missing(monkeypatch, tiny_model, tmp_path):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(GritError, match=r"pip install 'grit-jax\[mteb\]'"):
        evaluate_mteb(tiny_model, "model", ["STS12"], tmp_path)


def test_results_are_kept_by_weights_and_settings(tiny_model, tmp_path):
    facts = model_facts(tiny_model, str(tmp_path), MtebSettings())
    assert facts.name == f"local/{tmp_path.name}" and facts.experiment == {}
    assert facts.revision == tiny_model.weights_hash[:16]
    assert facts.width == tiny_model.embedding_width
    assert model_facts(tiny_model, "org/name", MtebSettings()).name == "org/name"
    named = model_facts(tiny_model, "x", MtebSettings(name="a/b", revision="r"))
    assert (named.name, named.revision) == ("a/b", "r")
    experiment = lambda **settings: (
        model_facts(tiny_model, "x", MtebSettings(**settings)).experiment
    )
    assert experiment(prompts="mteb", max_length=64) == {"prompts": "mteb", "max_length": 64}
    hybrid = {"retrieval": Retrieval("hybrid"), "search": SearchSettings("int8")}
    assert experiment(protocol="search", **hybrid) == {
        "protocol": "search",
        "search": "hybrid",
        "fusion": "scores",
        "precision": "int8",
    }
    assert experiment(protocol="cross-encoder", rerank=5) == {
        "protocol": "cross-encoder",
        "rerank": 5,
    }
    file = MtebSettings(prompts="some/mine.json")
    one, other = (
        model_facts(tiny_model, "x", file, {"A": TaskInstruction("A", "STS", text)}).experiment
        for text in ("first", "second")
    )
    assert one["prompts"] == "mine" and one["prompts_hash"] != other["prompts_hash"]


def test_the_report():
    score = TaskScore(
        "A", "STS", "cosine_spearman", 0.5, {"test/default": 0.5},
        TaskInstruction("A", "STS", "Compare"), 3, 1.5, False,
    )  # fmt: skip
    other = dataclasses.replace(score, task="Bc", score=0.3, instruction=None)
    third = dataclasses.replace(score, task="D", type="Retrieval", score=0.1)
    scores = MtebScores("a/b", "r", {"protocol": "encoder"}, "2.0", [score, other, third], "out")
    values = json.loads(json.dumps(scores.to_dict()))
    assert values["mean"] == pytest.approx(0.3) and values["mean_type"] == pytest.approx(0.25)
    assert values["by_type"] == {"Retrieval": 0.1, "STS": pytest.approx(0.4)}
    assert values["tasks"][0]["instruction"]["query"] == "Compare"
    assert values["tasks"][0]["truncated"] == 3 and values["results"] == "out"
    lines = scores.lines().splitlines()
    assert lines[0].split() == ["A", "cosine_spearman", "0.5000", "Compare"]
    assert lines[-1].split() == ["mean", "of", "tasks", "0.3000"] and len(lines) == 6
