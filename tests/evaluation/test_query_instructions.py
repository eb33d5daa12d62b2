"""Instructions by domain, examples after them, and the cost of the wrong instruction by hand."""

from __future__ import annotations

import json

import pytest
from retrieval_folders import beir_folder

from grit_jax.errors import GritError
from grit_jax.evaluation.embedders import ModelEmbedder
from grit_jax.evaluation.query_instructions import (
    NO_INSTRUCTION,
    instruction_table,
    instruction_variants,
    read_instructions,
    read_shots,
    with_instructions,
)
from grit_jax.evaluation.retrieval_data import read_task
from grit_jax.evaluation.retrieval_run import RunSettings, run_retrieval

INSTRUCTIONS = {"metal": "Find metals", "nature": "Find nature", "spare": "Find anything"}


@pytest.fixture
def task(tmp_path):
    """Of the domains metal, nature, metal."""
    return read_task(beir_folder(tmp_path / "task"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files(tmp_path):
    lines = write(
        tmp_path / "i.jsonl", [{"name": n, "instruction": t} for n, t in INSTRUCTIONS.items()]
    )
    table = tmp_path / "i.tsv"
    table.write_text("".join(f"{name}\t{text}\n" for name, text in INSTRUCTIONS.items()))
    assert read_instructions(lines) == read_instructions(table) == INSTRUCTIONS
    table.write_text("metal\tone\nmetal\ttwo\n")
    with pytest.raises(GritError, match=r"i\.tsv:2: the name 'metal' is that of an earlier line"):
        read_instructions(table)
    table.write_text("metal only\n")
    with pytest.raises(GritError, match=r"i\.tsv:1: expected \{\"name\""):
        read_instructions(table)
    rows = [
        {"query": ["x", "q0"], "pos": ["p0", "other"]},
        {"query": "q1", "pos": ["p1"], "domain": "metal"},
        {"query": "q2", "pos": ["p2"]},
        {"query": "q3", "pos": ["p3"], "domain": "metal"},
    ]
    shots = read_shots(write(tmp_path / "shots.jsonl", rows), 2)
    assert shots.examples == {
        "": [("q0", "p0"), ("q2", "p2")],
        "metal": [("q1", "p1"), ("q3", "p3")],
    }
    assert '"q3"' in shots.after("Find", "metal") and '"q2"' in shots.after("Find", "nature")
    with pytest.raises(GritError, match="--shots 3, and there are 2 examples"):
        read_shots(tmp_path / "shots.jsonl", 3)


def test_each_query_gets_the_instruction_of_its_domain(task, tmp_path):
    given = with_instructions(task, "Search", {"nature": "Find nature"})
    assert [q.instruction for q in given.queries] == ["Search", "Find nature", "Search"]
    given = with_instructions(task, None, {"nature": "n", "default": "d"})
    assert [q.instruction for q in given.queries] == ["d", "n", "d"]
    assert [q.instruction for q in with_instructions(task).queries] == [None] * 3
    shots = read_shots(write(tmp_path / "s.jsonl", [{"query": "q", "pos": ["p"]}]), 1)
    given = with_instructions(task, "Search", shots=shots)
    assert given.queries[0].instruction == (
        'Search\n\nFor example given "q", you should retrieve "p"'
    )
    with pytest.raises(GritError, match="'copper lantern' has no instruction"):
        with_instructions(task, shots=shots)


def test_the_cost_of_the_wrong_instruction_by_hand(task):
    scores = {
        "metal": [0.8, 0.5, 0.6],
        "nature": [0.4, 0.9, 0.6],
        "spare": [1.0, 1.0, 1.0],
        NO_INSTRUCTION: [0.1, 0.2, 0.3],
    }
    table = instruction_table(task, INSTRUCTIONS, scores, resamples=100)
    metal, nature = table["domains"]["metal"], table["domains"]["nature"]
    assert (metal["queries"], metal["own"], metal["worst"]) == (2, "metal", "nature")
    assert metal["scores"] == pytest.approx(
        {"metal": 0.7, "nature": 0.5, "spare": 1.0, NO_INSTRUCTION: 0.2}
    )
    assert metal["cost"] == pytest.approx(0.2) and nature["cost"] == pytest.approx(0.4)
    every = table["all"]
    assert every["right"] == pytest.approx((0.8 + 0.9 + 0.6) / 3)
    assert every["wrong"] == pytest.approx((0.4 + 0.5 + 0.6) / 3)
    assert every["cost"] == pytest.approx(every["right"] - every["wrong"])
    assert every["low"] <= every["cost"] <= every["high"]
    alone = instruction_table(task, {"metal": "m"}, {"metal": scores["metal"]})
    assert alone["all"] is None and alone["domains"]["nature"]["own"] is None


def test_variants_are_searched_with_their_instruction(tiny_model, task):
    variants = instruction_variants(task, INSTRUCTIONS)
    assert list(variants) == [*INSTRUCTIONS, NO_INSTRUCTION]
    settings = RunSettings(searches=["dense"], ks=(3,))
    embedder = ModelEmbedder(tiny_model)
    run = run_retrieval(task, embedder, settings, variants=variants)
    assert run.variants[NO_INSTRUCTION].ids == run.searches["model"].ids
    alone = run_retrieval(with_instructions(task, "Find metals"), embedder, settings)
    assert run.variants["metal"].ids == alone.searches["model"].ids
    assert run.variants["metal"].values[0].tolist() != run.searches["model"].values[0].tolist()
