"""Reranking a store's documents: equal to `grit ask --rerank`, from their records."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index
from grit_jax.rag.search.hybrid import Retrieval

QUERY = "Which river is quiet?"


@pytest.fixture(scope="module")
def asker(tiny_model, index_path):
    return Asker(tiny_model, Index.open(index_path, tiny_model))


def expected(asker, **fields):
    """The reranked documents of `grit ask --rerank 5 --k 5`."""
    retrieval = Retrieval(rerank=5, **fields)
    return asker.ask(QUERY, "doc", k=5, retrieval=retrieval, max_new_tokens=1)[0].documents


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_candidates_of_a_search(server, asker, path):
    reply = server.post(path, query=QUERY, store="docs", rerank=5, search="hybrid", where="n >= 3")
    documents = expected(asker, search="hybrid", where="n >= 3")
    assert [r["document_id"] for r in reply["results"]] == [d["id"] for d in documents]
    for result, document in zip(reply["results"], documents):
        assert result["relevance_score"] == pytest.approx(document["score"], abs=1e-5)
        assert result["search_score"] == pytest.approx(document["search_score"], abs=1e-5)
        assert result["document"]["text"] == asker.index.text(document["id"])
        assert result["document"]["attributes"]["n"] >= 3
    assert sorted(r["index"] for r in reply["results"]) == [0, 1, 2, 3, 4]
    by_search = sorted(reply["results"], key=lambda r: -r["search_score"])
    assert [r["index"] for r in by_search] == [0, 1, 2, 3, 4]
    cached = sum(asker.index.documents[asker.index.row_of(d["id"])]["tokens"] for d in documents)
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert reply["usage"]["total_tokens"] > cached and not reply["grit"]["warnings"]


def test_named_documents(server, asker):
    ids = ["d7", "d2", "d11", "d5"]
    reply = server.post("/v1/rerank", query=QUERY, store="docs", document_ids=ids, top_n=2)
    scores = server.post("/v1/score", queries=QUERY, store="docs", document_ids=ids)["data"]
    assert [score["document_id"] for score in scores] == ids
    best = sorted(range(4), key=lambda i: -scores[i]["score"])[:2]
    assert [result["index"] for result in reply["results"]] == best
    assert [result["document_id"] for result in reply["results"]] == [ids[i] for i in best]
    assert [r["relevance_score"] for r in reply["results"]] == pytest.approx(
        [scores[i]["score"] for i in best], abs=1e-6
    )
    # As the same documents are judged after a search.
    judged = {d["id"]: d["score"] for d in expected(asker, search="dense")}
    named = server.post("/v1/rerank", query=QUERY, store="docs", document_ids=list(judged))
    for result in named["results"]:
        assert result["relevance_score"] == pytest.approx(judged[result["document_id"]], abs=1e-5)
        assert "search_score" not in result
    short = server.post(
        "/v1/rerank", query=QUERY, store="docs", document_ids=["d1"], return_documents=False
    )
    assert "document" not in short["results"][0]


def test_candidates_by_default(server):
    assert len(server.post("/v1/rerank", query=QUERY, store="docs")["results"]) == 12
    reply = server.post("/v1/rerank", query=QUERY, store="docs", top_n=3, where="n < 2")
    assert len(reply["results"]) == 2
    nothing = {"search": "lexical", "query": "zzzz"}
    assert server.post("/v1/rerank", store="docs", **nothing)["results"] == []


@pytest.mark.parametrize(
    "path, body, status, words",
    [
        ("rerank", {"store": "x"}, 404, "there is no store 'x'"),
        ("rerank", {"store": "docs", "query": " "}, 400, "query: must not be empty"),
        ("rerank", {"store": "docs", "documents": ["x"]}, 400, "documents: not with 'store'"),
        ("rerank", {"store": "docs", "max_tokens_per_doc": 3}, 400, "max_tokens_per_doc: not with"),
        ("rerank", {"store": "docs", "document_ids": ["no"]}, 400, "there is no document 'no'"),
        ("rerank", {"store": "docs", "document_ids": []}, 400, "document_ids: expected 1 to 64"),
        ("rerank", {"store": "docs", "document_ids": ["d1", "d1"]}, 400, "an id is there twice"),
        (
            "rerank",
            {"store": "docs", "document_ids": ["d1"], "rerank": 3},
            400,
            "rerank: not with 'document_ids'",
        ),
        ("rerank", {"store": "docs", "where": "("}, 400, "where: position 2"),
        ("rerank", {"documents": ["x"], "document_ids": ["d1"]}, 400, "only with 'store'"),
        ("score", {"queries": "x", "store": "docs"}, 400, "give queries (one text)"),
        ("score", {"store": "docs", "queries": ["x"], "document_ids": ["d1"]}, 400, "one text"),
        ("score", {"queries": "x", "documents": "y", "document_ids": ["d1"]}, 400, "only with"),
    ],
)
def test_a_bad_request_is_refused(server, path, body, status, words):
    given = {"query": QUERY} if path == "rerank" else {}
    got, error = server.error(f"/v1/{path}", **(given | body))
    assert got == status and words in error["message"], error


def test_too_many_tokens(server):
    preparer = server.service.stores.get("docs").current()
    with pytest.raises(GritError, match="2 documents: .* a request may have 20"):
        preparer.judge(QUERY, ["d1", "d2"], most_tokens=20)
