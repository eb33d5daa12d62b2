"""Pages of lists."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.paging import list_body, page_of

IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "query, page, more",
    [
        ({}, ["a", "b", "c"], True),
        ({"limit": "4"}, IDS, False),
        ({"order": "desc", "limit": "2"}, ["d", "c"], True),
        ({"order": "desc", "after": "c"}, ["b", "a"], False),
        ({"after": "a", "before": "d"}, ["b", "c"], False),
        ({"after": "d"}, [], False),
    ],
)
def test_pages(query, page, more):
    assert page_of(IDS, query, default=3, most=4) == (page, more)


@pytest.mark.parametrize(
    "query, words",
    [
        ({"limit": "0"}, "limit: expected 1 to 4"),
        ({"limit": "5"}, "limit: expected 1 to 4"),
        ({"limit": "x"}, "limit: expected 1 to 4"),
        ({"order": "up"}, "order: expected asc or desc"),
        ({"after": "x"}, "after: there is no 'x'"),
        ({"before": "x"}, "before: there is no 'x'"),
    ],
)
def test_a_bad_query(query, words):
    with pytest.raises(ApiError, match=words):
        page_of(IDS, query, default=3, most=4)


def test_a_page_as_json():
    assert list_body([], False)["last_id"] is None
    body = list_body([{"id": "a"}, {"id": "b"}], True)
    assert (body["first_id"], body["last_id"], body["has_more"]) == ("a", "b", True)
