"""Files of a retrieval run: trec_eval reads our scores out of them; two runs are compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import pytrec_eval
from retrieval_folders import beir_folder

from grit_jax.errors import GritError
from grit_jax.evaluation.embedders import ModelEmbedder
from grit_jax.evaluation.retrieval_data import read_task
from grit_jax.evaluation.retrieval_run import RunSettings, run_retrieval
from grit_jax.evaluation.run_files import compare_runs, write_per_query, write_trec_runs
from grit_jax.rag.search.hybrid import Retrieval

SETTINGS = RunSettings(ks=(1, 3), depth=6, retrieval=Retrieval("hybrid", rerank=2))


class Backwards:
    """Judges the last candidate best."""

    def scores(self, query, numbers, documents):
        return np.arange(len(numbers), dtype=np.float64) / 10


@pytest.fixture
def run(tiny_model, tmp_path):
    task = read_task(beir_folder(tmp_path / "task"))
    return run_retrieval(task, ModelEmbedder(tiny_model), SETTINGS, Backwards())


def test_trec_eval_finds_our_scores_in_the_run_files(run, tmp_path):
    (tmp_path / "runs").mkdir()
    write_trec_runs(tmp_path / "runs", run)
    task = run.task
    qrels = dict(zip(task.query_ids, task.judgements))
    assert len(run.searches) == 6
    for name, ranked in run.searches.items():
        lines = (tmp_path / "runs" / f"{name}.trec").read_text().splitlines()
        with open(tmp_path / "runs" / f"{name}.trec") as file:
            read = pytrec_eval.parse_run(file)
        expected = pytrec_eval.RelevanceEvaluator(
            qrels, {"ndcg_cut.1,3", "map_cut.3", "recall.3"}
        ).evaluate(read)
        for query, id in enumerate(task.query_ids):
            of = [line.split() for line in lines if line.split()[0] == id]
            assert [fields[2] for fields in of] == ranked.ids[query]
            assert [int(fields[3]) for fields in of] == list(range(1, len(of) + 1))
            if not of:
                continue
            scores = ranked.scores[query]
            assert scores["ndcg@1"] == pytest.approx(expected[id]["ndcg_cut_1"])
            assert scores["ndcg@3"] == pytest.approx(expected[id]["ndcg_cut_3"])
            assert scores["map@3"] == pytest.approx(expected[id]["map_cut_3"])
            assert scores["recall@3"] == pytest.approx(expected[id]["recall_3"])


def test_a_per_query_file_and_its_comparison(run, tmp_path):
    path = tmp_path / "queries.jsonl"
    write_per_query(path, run)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["query"] for line in lines] == ["q1", "q2", "q3"]
    first = lines[0]
    assert first["judgements"] == {"doc-a": 2, "doc-c": 1} and first["domain"] == "metal"
    model = first["searches"]["model"]
    assert [id for id, _ in model["ranking"]] == run.searches["model"].ids[0]
    assert model["scores"] == run.searches["model"].scores[0]
    same = compare_runs(run, path, resamples=50)
    assert same["queries"] == 3 and same["searches"].keys() == run.searches.keys()
    assert same["searches"]["model"]["ndcg@3"]["p"] == 1
    # Another run, without one query and with other scores.
    for line in lines:
        line["searches"] = {"bm25": line["searches"]["bm25"]}
        line["searches"]["bm25"]["scores"]["ndcg@3"] = 0.25
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    compared = compare_runs(run, path, resamples=50)
    assert (compared["queries"], compared["only_this"], compared["only_other"]) == (2, 1, 0)
    assert compared["searches"].keys() == {"bm25"}
    ours = [scores["ndcg@3"] for scores in run.searches["bm25"].scores[1:]]
    found = compared["searches"]["bm25"]["ndcg@3"]
    assert found["this"] == pytest.approx(sum(ours) / 2) and found["other"] == 0.25
    lines[1]["judgements"] = {"doc-b": 3}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(GritError, match="the judgements of query 'q2' differ"):
        compare_runs(run, path)
    path.write_text('{"query": "q1"}\n')
    with pytest.raises(GritError, match=r"queries\.jsonl:1: not a line of a file"):
        compare_runs(run, path)


def test_ids_that_a_trec_run_cannot_hold(run, tmp_path):
    run.task.query_ids[0] = "q one"
    with pytest.raises(GritError, match="the id 'q one' has white space"):
        write_trec_runs(tmp_path, run)
