"""OpenAI's filters select what the same conditions in Python select."""

from __future__ import annotations

import pytest

from grit_jax.rag.filters import parse_filter
from grit_jax.serving.errors import ApiError
from grit_jax.serving.filters import expression_of

DOCUMENTS = [
    {"year": y, "lang": lang, "a b": y % 2 == 0} for y in range(5) for lang in ('e"n', "de")
]


@pytest.mark.parametrize(
    "filters, keep",
    [
        ({"type": "eq", "key": "lang", "value": 'e"n'}, lambda d: d["lang"] == 'e"n'),
        ({"type": "ne", "key": "year", "value": 2}, lambda d: d["year"] != 2),
        ({"type": "lt", "key": "year", "value": 1.5}, lambda d: d["year"] < 1.5),
        ({"type": "gte", "key": "year", "value": 3}, lambda d: d["year"] >= 3),
        ({"type": "eq", "key": "a b", "value": True}, lambda d: d["a b"]),
        ({"type": "in", "key": "year", "value": [1, 4]}, lambda d: d["year"] in (1, 4)),
        ({"type": "nin", "key": "lang", "value": ["de"]}, lambda d: d["lang"] != "de"),
        (
            {
                "type": "or",
                "filters": [
                    {
                        "type": "and",
                        "filters": [
                            {"type": "gt", "key": "year", "value": 2},
                            {"type": "eq", "key": "lang", "value": "de"},
                        ],
                    },
                    {"type": "lte", "key": "year", "value": 0},
                ],
            },
            lambda d: (d["year"] > 2 and d["lang"] == "de") or d["year"] <= 0,
        ),
    ],
)
def test_the_same_documents(filters, keep):
    chosen = parse_filter(expression_of(filters))
    assert [chosen.matches(d) for d in DOCUMENTS] == [bool(keep(d)) for d in DOCUMENTS]


@pytest.mark.parametrize(
    "filters",
    [
        [],
        {"type": "like", "key": "a", "value": "b"},
        {"type": "eq", "key": "a"},
        {"type": "eq", "key": "a`b", "value": 1},
        {"type": "eq", "key": "a", "value": None},
        {"type": "in", "key": "a", "value": []},
        {"type": "and", "filters": []},
        {"type": "and", "filters": [{"type": "eq"}]},
    ],
)
def test_what_is_no_filter_is_refused(filters):
    with pytest.raises(ApiError, match="filters"):
        expression_of(filters)


def test_nested_without_end():
    filters = {"type": "eq", "key": "a", "value": 1}
    for _ in range(30):
        filters = {"type": "and", "filters": [filters]}
    with pytest.raises(ApiError, match="at most 20"):
        expression_of(filters)
