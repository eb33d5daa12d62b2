"""The tool `file_search`: which search a request asks for, and what is cited."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.file_search import DEFAULT_RESULTS, citations, file_search_of, searched
from grit_jax.serving.response_protocol import ResponseBody

TOOL = {"type": "file_search", "vector_store_ids": ["docs"]}
MESSAGES = [{"role": "user", "content": "amber?"}]


def test_choices():
    of = lambda **fields: file_search_of(ResponseBody(input="x", **fields))
    assert of() is None and of(tools=[]) is None
    assert of(tools=[TOOL], tool_choice="none") is None
    for choice in (None, "auto", "required", {"type": "file_search"}):
        assert of(tools=[TOOL], tool_choice=choice).vector_store_ids == ["docs"]
    with pytest.raises(ApiError, match="one file_search at most"):
        of(tools=[TOOL, TOOL])


def test_what_is_searched(server):
    body = ResponseBody(
        input="x",
        tools=[
            {
                **TOOL,
                "filters": {"type": "gte", "key": "n", "value": 2},
                "ranking_options": {"score_threshold": 0.25},
                "rerank": 8,
            }
        ],
    )
    tool = file_search_of(body)
    request = searched(server.service, tool, MESSAGES)
    assert (request.question, request.turns, request.k) == ("amber?", (), DEFAULT_RESULTS)
    assert request.retrieval.where == "`n` >= 2" and request.mode == "auto"
    assert (request.retrieval.least_score, request.retrieval.rerank) == (0.25, 8)
    turns = [*MESSAGES, {"role": "assistant", "content": "yes"}, *MESSAGES]
    assert searched(server.service, tool, turns).turns == ("amber?", "yes", "amber?")


def test_a_file_is_cited_once():
    results = [{"file_id": id, "filename": id.upper()} for id in ("a", "b", "a")]
    cited = citations(results)
    assert [(c["file_id"], c["filename"], c["index"]) for c in cited] == [
        ("a", "A", 0),
        ("b", "B", 1),
    ]
