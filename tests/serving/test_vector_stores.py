"""Vector stores: listed, and searched as the index is."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.rag.index import Index


def test_the_official_client_lists_and_searches(openai_client, tiny_model, index_path, sentences):
    stores = openai_client.vector_stores
    [store] = stores.list(limit=5).data
    assert store.id == "docs" and store.file_counts.completed == 12 and store.status == "completed"
    assert stores.retrieve("docs").id == "docs"
    index = Index.open(index_path, tiny_model)
    page = stores.search("docs", query=sentences[3], max_num_results=4)
    expected = index.search(tiny_model.encode(sentences[3]), 4)
    rows = expected.rows[0].tolist()
    assert [item.file_id for item in page.data] == [f"d{row}" for row in rows]
    np.testing.assert_allclose([item.score for item in page.data], expected.scores[0], atol=1e-5)
    assert [item.content[0].text for item in page.data] == [index.text(row) for row in rows]
    assert page.data[0].attributes == {"n": rows[0]}


def test_filters_thresholds_and_words(server, sentences):
    search = lambda **body: server.post("/v1/vector_stores/docs/search", **body)
    ids = lambda page: [item["file_id"] for item in page["data"]]
    both = {
        "type": "and",
        "filters": [
            {"type": "gte", "key": "n", "value": 4},
            {"type": "nin", "key": "n", "value": [5, 6]},
        ],
    }
    found = ids(search(query="amber", filters=both, max_num_results=50))
    assert sorted(found, key=lambda i: int(i[1:])) == [f"d{n}" for n in (4, 7, 8, 9, 10, 11)]
    assert ids(search(query="amber", where="n in [3]")) == ["d3"]
    whole = search(query="amber")
    cut = whole["data"][3]["score"]
    assert ids(search(query="amber", ranking_options={"score_threshold": cut})) == ids(whole)[:4]
    words = search(query=sentences[7], search="lexical", max_num_results=1)
    assert ids(words) == ["d7"]
    weights = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
    assert ids(search(query=sentences[7], ranking_options=weights))[0] == "d7"
    several = search(query=[sentences[2], sentences[9]], max_num_results=2, search="lexical")
    assert set(ids(several)) == {"d2", "d9"}


@pytest.mark.parametrize(
    "path, body, status, words",
    [
        ("other/search", {"query": "x"}, 404, "no store 'other'"),
        ("docs/search", {"query": ""}, 400, "query: must not be empty"),
        ("docs/search", {"query": []}, 400, "query: must not be empty"),
        ("docs/search", {}, 400, "query: this field is required"),
        ("docs/search", {"query": "x", "max_num_results": 51}, 400, "max_num_results"),
        ("docs/search", {"query": "x", "filters": {"type": "eq"}}, 400, "filters: expected"),
        ("docs/search", {"query": "x", "where": "("}, 400, "where: position 2"),
        ("docs/search", {"query": "x", "where": "no_such == 1"}, 400, "no_such"),
        ("docs/search", {"query": "x", "rewrite_query": True}, 400, "rewrite_query"),
        ("docs/search", {"query": "x", "ranking_options": {"ranker": "x"}}, 400, "ranker"),
        ("docs/files", {"file_id": "x"}, 403, "takes no files"),
    ],
)
def test_a_bad_request_is_refused(server, path, body, status, words):
    got, error = server.error(f"/v1/vector_stores/{path}", **body)
    assert got == status and words in error["message"], error


def test_pages_of_stores(server):
    assert server.send("/v1/vector_stores?limit=0")[0] == 400
    assert server.send("/v1/vector_stores?after=other")[0] == 404
    status, page, _ = server.send("/v1/vector_stores?after=docs")
    assert status == 200 and page["data"] == [] and not page["has_more"]
    assert server.send("/v1/vector_stores", {"name": "new"})[0] == 405
