"""The tool `file_search`: which search a request asks for, and what is cited."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.file_search import DEFAULT_RESULTS, citations, file_search_of, searched

TOOL = {"type": "file_search", "vector_store_ids": ["docs"]}
MESSAGES = [{"role": "user", "content": "amber?"}]


def test_a_mistake_names_the_tool():
    assert file_search_of("tools[0]", TOOL).vector_store_ids == ["docs"]
    with pytest.raises(ApiError, match=r"tools\[3\].rerank: "):
        file_search_of("tools[3]", {**TOOL, "rerank": 0})


def test_what_is_searched(server):
    given = {
        **TOOL,
        "filters": {"type": "gte", "key": "n", "value": 2},
        "ranking_options": {"score_threshold": 0.25},
        "rerank": 8,
    }
    tool = file_search_of("tools[0]", given)
    request = searched(server.service, tool, MESSAGES)
    assert (request.question, request.turns, request.k) == ("amber?", (), DEFAULT_RESULTS)
    assert request.retrieval.where == "`n` >= 2" and request.mode == "auto"
    assert (request.retrieval.least_score, request.retrieval.rerank) == (0.25, 8)
    turns = [*MESSAGES, {"role": "assistant", "content": "yes"}, *MESSAGES]
    assert searched(server.service, tool, turns).turns == ("amber?", "yes", "amber?")
    told = [{"role": "user", "content": "slate?"}, {"role": "assistant"}, {"role": "tool"}]
    request = searched(server.service, tool, told, tools=True)
    assert (request.question, request.turns) == ("slate?", ())


def test_a_file_is_cited_once():
    results = [{"file_id": id, "filename": id.upper()} for id in ("a", "b", "a")]
    cited = citations(results)
    assert [(c["file_id"], c["filename"], c["index"]) for c in cited] == [
        ("a", "A", 0),
        ("b", "B", 1),
    ]
