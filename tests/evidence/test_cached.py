"""The cached layouts with and without training for them: targets, tables, configurations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from evidence_rows import QUESTIONS, rows

from grit_jax.config import build
from grit_jax.data.pipeline import JointBatches
from grit_jax.errors import GritError
from grit_jax.evaluation.rag_table import RagTable, RagVariant
from grit_jax.evidence import cached, recipes
from grit_jax.run_config import RunConfig


def run(matched):
    return {"steps": 4, "seconds": 1.0, "questions": QUESTIONS, "rows": rows(matched)}


def trained(case: RagVariant) -> int:
    """120 of 200 questions, more or less."""
    by_mode = {"none": 10, "doc-then-query": 122, "doc": 121, "query-doc": 117, "doc-query": 118}
    found = by_mode.get(case.mode, 120)
    found -= {"int8": 1, "int4": 3}.get(case.kv or "", 0)
    found -= {5: 3}.get(case.k or 1, 0)
    return found - (40 if case.positions == "colliding" else 0)


def untrained(case: RagVariant) -> int:
    return trained(case) - (60 if case.mode in ("doc", "query", "query-doc", "doc-query") else -2)


def test_costs_are_paired_by_question_and_seed():
    reference = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], float)
    measured = np.array([[1, 0, 0, 1], [1, 1, 0, 0]], float)
    found = cached.cost(reference, measured)
    assert found["per_seed"] == [25.0, 0.0] and found["mean"] == 12.5
    # By question, averaged over the seeds: 0, 0, 0, 50.
    assert found["standard_error"] == pytest.approx(np.std([0, 0, 0, 50], ddof=1) / 2)


def test_targets_by_hand():
    found = cached.compare({"trained": [run(trained)], "untrained": [run(untrained)]})
    by = {one["claim"]: one for one in found["targets"]}
    assert len(by) == len(found["targets"]) == 3 + 6 + 3
    doc, query_doc, doc_query = (
        by[f"{mode} beside plain RAG"] for mode in ("doc", "query-doc", "doc-query")
    )
    assert doc["trained"]["reference"] == "doc-then-query"  # the better of both orders
    assert (doc["trained"]["mean"], doc["limit"], doc["holds"]) == (0.5, 1.0, True)
    assert (query_doc["trained"]["mean"], query_doc["holds"]) == (2.5, False)
    assert (doc_query["trained"]["mean"], doc_query["limit"], doc_query["holds"]) == (
        2.0,
        2.0,
        True,
    )
    assert doc["untrained"]["mean"] == 31.5  # (124 - 61) / 2
    int8, int4 = by["doc: int8 beside native"], by["doc: int4 beside native"]
    assert (int8["trained"]["mean"], int8["holds"]) == (0.5, True)
    assert (int4["trained"]["mean"], int4["holds"]) == (1.5, False)
    several = by["query-doc: k = 5 beside k = 1"]
    assert (several["trained"]["mean"], several["holds"]) == (1.5, True)
    assert not found["holds"] and found["summary"]["trained"]["doc"]["mean"] == 121 / 200
    assert all(
        "hits" not in row for runs in found["twins"].values() for one in runs for row in one["rows"]
    )
    json.dumps(found)


def test_seeds_are_averaged():
    less = lambda case: trained(case) - 10 * (case.mode == "doc")
    found = cached.compare(
        {"trained": [run(trained), run(less)], "untrained": [run(untrained)] * 2}
    )
    doc = found["targets"][0]["trained"]
    assert doc["per_seed"] == [0.5, 5.5] and doc["mean"] == 3.0
    said = cached.markdown({"cached": found, "seeds": [0, 1]})
    assert "Means over 2 seeds, 200 held-out questions." in said


def test_the_tables():
    found = cached.compare({"trained": [run(trained)], "untrained": [run(untrained)]})
    said = cached.markdown({"cached": found, "seeds": [0]})
    tables = [block for block in said.split("\n\n") if block.startswith("|")]
    read = lambda table: [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    layouts, placed, packed, several, targets = map(read, tables)
    for one in (layouts, placed, packed, several, targets):
        assert len({len(row) for row in one}) == 1
    by = {row[1]: row for row in layouts}
    assert by["none"] == ["closed book", "none", "6.0", "5.0"][:2] + ["6.0", "5.0"]
    # The uncached layout of the same order stands above those that are read from caches.
    assert [row[1] for row in layouts[3:6]] == ["query-then-doc (no cache)", "query", "query-doc"]
    assert by["doc"] == ["document first", "doc", "30.5", "60.5"]
    assert placed[0][2:] == [
        "untrained, running",
        "untrained, colliding",
        "trained, running",
        "trained, colliding",
    ]
    assert [row[:2] for row in placed[2:]] == [
        ["doc", "3"],
        ["doc", "5"],
        *[[mode, str(k)] for mode in ("query-doc", "doc-query") for k in (1, 3, 5)],
    ]
    assert placed[2][2:] == ["30.5", "10.5", "60.5", "40.5"]
    doc = packed[2]
    assert doc == ["doc", "30.5", "30.0", "29.0", "30.5", "60.5", "60.0", "59.0", "60.5"]
    assert [row for row in several if row[0] == "doc"][0][4:] == ["60.5", "60.5", "59.0"]
    verdicts = {row[0]: row[-1] for row in targets}
    assert (
        verdicts["doc beside plain RAG"] == "holds"
        and verdicts["query-doc beside plain RAG"] == "missed by 0.5"
    )
    assert (
        "8 of 12 targets hold" in said
        and "missed: query-doc beside plain RAG; " in said
        and "One seed" in said
    )
    good = cached.compare(
        {name: [run(lambda case: 100 * (case.mode != "none"))] for name in recipes.CACHED_MODELS}
    )
    assert (
        "All 12 targets hold" in cached.verdict(good)
        and good["holds"]
        and "reads" not in cached.verdict(good)
    )
    # A model that never answers loses nothing by caching.
    bad = cached.compare({name: [run(lambda case: 10)] for name in recipes.CACHED_MODELS})
    assert (
        bad["gain"] == 0 and not bad["holds"] and "this model hardly reads" in cached.verdict(bad)
    )


def test_scoring_goes_on_after_the_last_whole_sweep(tmp_path, monkeypatch):
    """What a model says does not matter here: a table of two questions, and then an
    interruption."""
    asked = []

    def table(model, questions, sweep, **others):
        asked.append(sweep.kvs)
        if len(asked) == 2:
            raise KeyboardInterrupt
        wanted = sweep.variants()
        return RagTable(
            {case: np.array([[1, 0, 0, 0.1, 0], [0, 0, 0, 0.1, 1]]) for case in wanted}, 9, 0
        )

    monkeypatch.setattr(cached, "evaluate_table", table)
    monkeypatch.setattr(cached.GritLM, "from_pretrained", lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        cached.score(tmp_path, tmp_path)
    found = cached.score(tmp_path, tmp_path)
    assert asked == [("native",), cached.KVS, cached.KVS] and len(found) == 27 + 9
    assert all((row["hits"], row["match"]) == ("10", 0.5) for row in found)
    assert cached.score(tmp_path, tmp_path) == found and len(asked) == 3
    (tmp_path / "rag.json").write_text('{"rows": []}')
    with pytest.raises(GritError, match=r"rag\.json: damaged; remove it"):
        cached.score(tmp_path, tmp_path)


# ---- configurations ------------------------------------------------------------------------------


def recipe(name: str, folder: str = "") -> RunConfig:
    """A recipe as it is read from `folder`; paths stay relative without one."""
    text = recipes.recipe_texts()[name].replace("data/train", str(Path(folder, "data/train")))
    return build(RunConfig, yaml.safe_load(text), name)


def test_cached_models_differ_in_the_layouts_alone():
    twins = {name: recipe(name) for name in recipes.CACHED_MODELS}
    plain = [
        dataclasses.replace(
            config,
            output="",
            data=dataclasses.replace(config.data, layouts=["doc"], pieces_row_length=1),
        )
        for config in twins.values()
    ]
    assert plain[0] == plain[1]
    cached_modes = {"doc", "query", "query-doc", "doc-query"}
    assert not cached_modes & {
        *twins["untrained"].data.layouts,
        *recipe("reader").data.layouts,
    }
    assert cached_modes < {*twins["trained"].data.layouts}
    assert not recipe("base").data.cached  # nothing that they start from has read a cache
    assert twins["trained"].model.path == twins["untrained"].model.path == "reader/model"


def test_cached_models_answer_the_same_questions_in_the_same_order(
    tmp_path, sentences, tiny_tokenizer
):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    short = [text[:40] for text in sentences]
    line = lambda i, k: {"docs": short[i : i + k], "text": [f"Question {i}?", f"Answer {i}."]}
    files = {
        "rag": [line(i, 1) for i in range(40)],
        "several": [line(i, 2 + i % 4) for i in range(40, 60)],
        "generative": [{"text": [a, b]} for a, b in zip(short[:20], short[20:40], strict=True)],
        "embedding_summary": [
            {"query": ["find it", a], "pos": [b], "neg": [c]}
            for a, b, c in zip(short[:30], short[30:60], short[60:90], strict=True)
        ],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    batches = {}
    for name in recipes.CACHED_MODELS:
        data = dataclasses.replace(recipe(name, str(tmp_path)).data, probe_steps=0)
        batches[name] = JointBatches(data, tiny_tokenizer, seed=5, num_steps=6)
    for step in (0, 5):
        assert batches["trained"].ids(step) == batches["untrained"].ids(step)
        mine, theirs = batches["trained"][step], batches["untrained"][step]
        for kind in ("embedding", "generative"):
            jax.tree.map(np.testing.assert_array_equal, getattr(mine, kind), getattr(theirs, kind))
        # Not a token of a cache in the one, some in the other; the answers are the same.
        assert (
            not theirs.cached.cached_texts.segments.any()
            and mine.cached.cached_texts.segments.any()
        )
        answers = [
            sorted(
                one.text.rows.tokens[(one.text.sequence == i) & (one.text.targets > 0)].tolist()
                for i in range(one.text.sequences)
            )
            for one in (mine.cached, theirs.cached)
        ]
        assert answers[0] == answers[1] and all(answers[0])
