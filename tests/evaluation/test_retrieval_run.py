"""Searches of a task beside each other, against NumPy and trec_eval."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from live_server import live_server
from retrieval_folders import DOCUMENTS, beir_folder

from grit_jax.data.bm25 import BM25
from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.errors import GritError
from grit_jax.evaluation.embedders import EndpointEmbedder, ModelEmbedder
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.hybrid import compare_retrieval
from grit_jax.evaluation.judges import EndpointJudge
from grit_jax.evaluation.retrieval_data import read_task
from grit_jax.evaluation.retrieval_run import RunSettings, run_retrieval
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.serving.settings import ServeSettings


@pytest.fixture
def task(tmp_path):
    return read_task(beir_folder(tmp_path / "task"))


def test_the_rankings_are_those_of_inner_products_and_of_words(tiny_model, task):
    settings = RunSettings(ks=(1, 3), depth=6)
    run = run_retrieval(task, ModelEmbedder(tiny_model), settings)
    assert list(run.searches) == ["model", "bm25", "hybrid"] and run.truncated == 0
    contents = [document.content for document in task.documents]
    ids = [document["_id"] for document in DOCUMENTS]
    products = tiny_model.encode([q.text for q in task.queries]) @ tiny_model.encode(contents).T
    for query, id in enumerate(task.query_ids):
        expected = [ids[i] for i in np.argsort(-products[query]) if ids[i] != id]
        assert run.searches["model"].ids[query] == expected
    # Words: only documents that share one, and not the one that is the query itself.
    assert run.searches["bm25"].ids[1] == ["doc-b"]
    assert run.searches["bm25"].ids[2] == ["doc-c"]
    assert run.searches["bm25"].scores[2]["ndcg@1"] == 1
    # One of its two relevant documents is not in the corpus.
    assert run.searches["bm25"].scores[1]["recall@3"] == 0.5
    kept = run_retrieval(
        task, None, RunSettings(searches=["lexical"], ks=(1,), drop_identical=False)
    )
    assert kept.searches["bm25"].ids[1] == ["q2"]
    values = BM25(contents).scores("amber ribbon")
    assert run.searches["bm25"].values[2].tolist() == [values[2]]


def test_equal_scores_are_in_the_order_of_trec_eval(tmp_path):
    same = [{"_id": f"d{n}", "title": "", "text": "copper lantern"} for n in (3, 1, 2)]
    task = read_task(beir_folder(tmp_path / "ties", documents=[*same, *DOCUMENTS]))
    run = run_retrieval(task, None, RunSettings(searches=["lexical"], ks=(3,)))
    first = run.searches["bm25"].ids[0][:3]
    assert first == ["d3", "d2", "d1"]


def test_an_embedding_file_scores_as_before(tiny_model, sentences, tmp_path):
    rows = [
        {"query": s, "pos": [t], "neg": [u]}
        for s, t, u in zip(sentences, sentences[20:40], sentences[40:60])
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = lambda t: Text(None, t)
    examples = [
        EmbeddingExample(text(r["query"]), (text(r["pos"][0]),), (text(r["neg"][0]),)) for r in rows
    ]
    before = compare_retrieval(tiny_model, examples)
    run = run_retrieval(read_task(path), ModelEmbedder(tiny_model), RunSettings(ks=(1, 10)))
    for name, scores in (("model", before.dense), ("bm25", before.bm25), ("hybrid", before.hybrid)):
        assert {key: run.searches[name].means[key] for key in scores} == scores


class RandomVectors:
    """Embeds each text by chance; those with the same letters have the same vector."""

    name, mesh, counts_truncated = "random", None, True

    def embed(self, texts, *, show=True):
        rows = [np.random.default_rng(sum(map(ord, t.text))).standard_normal(8) for t in texts]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0


def test_scores_at_a_cut_do_not_depend_on_a_higher_one(tmp_path):
    rng = np.random.default_rng(2)
    words = ["copper", "lantern", "river", "stone", "amber", "ribbon", *"abcdefgh"]
    documents = [
        {"_id": f"doc-{n}", "title": "", "text": " ".join(rng.choice(words, 6))} for n in range(400)
    ]
    documents = [{**d, "_id": DOCUMENTS[n]["_id"]} for n, d in enumerate(documents[:3])] + documents
    task = read_task(beir_folder(tmp_path / "many", documents=documents))
    few, many = (
        run_retrieval(task, RandomVectors(), RunSettings(ks=ks)) for ks in ((10,), (10, 100))
    )
    for name, ranked in few.searches.items():
        assert [ids[:10] for ids in many.searches[name].ids] == ranked.ids, name
        assert all(len(ids) == 100 for ids in many.searches["hybrid"].ids)


class Preference:
    """Judges by a list of ids, and notes what it is asked."""

    def __init__(self, task, order):
        self.order, self.ids, self.asked = order, task.documents.ids, []

    def scores(self, query, numbers, documents):
        self.asked.append((query, [self.ids[number] for number in numbers]))
        assert [d.content for d in documents] == [
            f"{DOCUMENTS[n]['title']} {DOCUMENTS[n]['text']}".strip() for n in numbers
        ]
        rank = {id: -place for place, id in enumerate(self.order)}
        return np.array([rank.get(self.ids[number], -99.0) for number in numbers])


def test_the_first_candidates_are_reranked_each_document_judged_once(tiny_model, task):
    judge = Preference(task, ["doc-f", "doc-c", "doc-a", "doc-b"])
    settings = RunSettings(ks=(1,), depth=6, retrieval=Retrieval("hybrid", rerank=3))
    run = run_retrieval(task, ModelEmbedder(tiny_model), settings, judge)
    assert list(run.searches) == [
        *("model", "bm25", "hybrid"),
        *("model+rerank", "bm25+rerank", "hybrid+rerank"),
    ]
    assert [query for query, _ in judge.asked] == [q.text for q in task.queries]
    for query, (_, asked) in enumerate(judge.asked):
        assert len(asked) == len(set(asked))
        for name in ("model", "bm25", "hybrid"):
            before, after = run.searches[name].ids[query], run.searches[f"{name}+rerank"].ids[query]
            assert {*before[:3]} <= {*asked} and before[3:] == after[3:]
            place = lambda id: judge.order.index(id) if id in judge.order else 99
            assert after[:3] == sorted(before[:3], key=place)


def test_a_depth_that_is_too_small(task):
    with pytest.raises(GritError, match=r"--depth 5: .* at least 10 documents"):
        run_retrieval(task, None, RunSettings(searches=["lexical"], ks=(10,), depth=5))


def test_a_server_finds_what_the_model_finds(tiny_model, tmp_path):
    """Vectors and judgements by way of a socket."""
    pytest.importorskip("openai")
    filled = [document for document in DOCUMENTS if document["text"]]
    task = read_task(beir_folder(tmp_path / "served", documents=filled))
    settings = RunSettings(ks=(1,), depth=5, retrieval=Retrieval("hybrid", rerank=2))
    serving = ServeSettings("tiny", slots=2, context=256, warm_up=False)
    with live_server(tiny_model, serving) as server:
        endpoint = Endpoint(server.url)
        judge = EndpointJudge(endpoint)
        run = run_retrieval(task, EndpointEmbedder(endpoint), settings, judge)
        document = task.documents[0]
        [score] = judge.scores("amber ribbon", [0], [document])
        assert score == endpoint.relevance(["amber ribbon"], [document.content])[0]
    alone = run_retrieval(
        task,
        ModelEmbedder(tiny_model),
        dataclasses.replace(settings, retrieval=Retrieval("hybrid")),
    )
    for name, ranked in alone.searches.items():
        assert run.searches[name].ids == ranked.ids
        for ours, theirs in zip(ranked.values, run.searches[name].values):
            np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert {*run.searches} - {*alone.searches} == {f"{name}+rerank" for name in alone.searches}
