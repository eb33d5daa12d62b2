"""The language of `--where`: what it keeps, and what it says about mistakes."""

from __future__ import annotations

import itertools

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.filters import check_fields, parse_filter

DOCUMENT = {
    "year": 2020,
    "score": 0.5,
    "lang": "en",
    "date": "2024-05-01",
    "tags": ["jax", "tpu", 7],
    "draft": False,
    "none": None,
    "author": {"name": "Ann", "born": {"year": 1970}},
    "first-name": "Ann",
    "quote": "a \"b\" \\ 'c'",
}


@pytest.mark.parametrize(
    "expression",
    [
        "year == 2020",
        "year = 2020.0",
        "year != 2021",
        "year > 2019 and year >= 2020 and year <= 2020 and year < 2021",
        "score == 5e-1 and score > -1 and score < +.6",
        'lang == "en"',
        "lang == 'en'",
        "lang < 'fr' and lang > 'EN'",
        'date >= "2024-01-01" and date < "2025"',
        'lang in ["de", "en"]',
        "lang not in ['de']",
        "year in [2019, 2020, 'x', true]",
        "tags == 'jax' and tags == 7 and tags in ['gpu', 'tpu'] and tags > 6",
        "tags != 'gpu'",
        "draft == false and draft != true",
        "author.name == 'Ann' and author.born.year < 1980",
        "`first-name` == 'Ann'",
        "not year == 2021",
        "not not year == 2020",
        "not (year == 2021 or lang == 'de')",
        "year == 2021 or lang == 'en' and draft == false",
        "(year == 2021 or lang == 'en') and draft == false",
        # What is not there fulfils `!=` and `not in` alone.
        "absent != 1 and absent not in [1] and not absent == 1 and none != 1",
        "author != 'Ann' and author.name.first != 'x' and lang.x != 1",
        # Types differ: never equal, never in an order.
        "year != '2020' and lang != 0 and draft != 0 and not year > '1' and not draft == 0",
        'quote == "a \\"b\\" \\\\ \'c\'"',
        "quote == 'a \"b\" \\\\ \\'c\\''",
        "  year==2020  ",
        "lang == '\\u0065n'",
    ],
)
def test_what_is_kept(expression):
    assert parse_filter(expression).matches(DOCUMENT) is True
    assert parse_filter(f"not ({expression})").matches(DOCUMENT) is False


@pytest.mark.parametrize("a,b,c", list(itertools.product([False, True], repeat=3)))
def test_not_binds_before_and_before_or(a, b, c):
    """As in Python."""
    metadata = {"a": a, "b": b, "c": c}
    for expression in (
        "not a or b and c",
        "a and b or c",
        "a or not b and c",
        "not (a or b) and c",
        "not a and not b or not c",
    ):
        words = " ".join(
            f"{word.strip('()')} == true".join(word.split(word.strip("()")))
            if word.strip("()") in metadata
            else word
            for word in expression.split()
        )
        assert parse_filter(words).matches(metadata) == eval(expression, dict(metadata)), words


@pytest.mark.parametrize(
    "expression, message",
    [
        ("", "position 1: expected the name of a field, the expression ends"),
        ("year", "position 5: expected ==, !=, <, <=, >, >= or in, the expression ends"),
        (
            "year >",
            "position 7: expected a value: a string in quotes, a number, true or false, the",
        ),
        ("year > and", "position 8: expected a value: .*, got 'and'"),
        ("year == 2020 lang == 1", "position 14: expected and, or, or the end, got 'lang'"),
        ("(year == 2020", "position 14: expected and, or, or \\), the expression ends"),
        ("year == 2020)", "position 13: expected and, or, or the end, got '\\)'"),
        ("lang == en", "position 9: expected a value: .*, got 'en'"),
        ("lang == 'en", "position 9: expected a value: .*, a quote that is not closed"),
        ("lang ~ 'en'", "position 6: expected ==.*, got '~'"),
        ("lang in 'en'", "position 9: expected \\[, got \"'en'\""),
        ("lang in ['en' 'de']", "position 15: expected , or \\], got \"'de'\""),
        ("lang in []", "position 10: expected a value"),
        ("lang not 'en'", "position 10: expected in, got"),
        ("draft < true", "position 9: true and false are compared by == and != only, got 'true'"),
        ("lang == '\\x'", "position 9: a string with a wrong escape"),
        ("year == " + "9" * 5000, "position 9: expected a number with fewer digits"),
        ("year == 20x", "position 9: expected a value: .*, got '2'"),
        ("and == 1", "position 1: expected the name of a field, got 'and'"),
        ("(" * 200 + "a == 1" + ")" * 200, "position 101: more than 100 nested expressions"),
        ("not " * 200 + "a == 1", "position 401: more than 100 nested expressions"),
    ],
)
def test_mistakes_are_named_with_their_position(expression, message):
    with pytest.raises(GritError, match=f"^where: {message}"):
        parse_filter(expression)


def test_fields():
    fields = parse_filter("a == 1 or not (a.b in [2]) and `c d` != 3").fields
    assert fields == {("a",), ("a", "b"), ("c d",)}


def test_many_alternatives():
    expression = " or ".join(f"year == {year}" for year in range(5000))
    assert parse_filter(expression).matches({"year": 4999})


def test_a_field_that_no_document_has_is_named_with_those_that_there_are():
    documents = [{"year": 1, "lang": {"code": "en"}}, {"lang": {"code": None}}]
    check_fields(parse_filter("year == 2 and lang.code != 'x'"), documents, "INDEX")
    message = "where: no document in INDEX has the metadata 'yaer'; there are: lang, year"
    with pytest.raises(GritError, match=message):
        check_fields(parse_filter("not yaer == 2"), documents, "INDEX")
    with pytest.raises(GritError, match="'lang.cod'"):
        check_fields(parse_filter("lang.cod == 2"), documents, "INDEX")
    with pytest.raises(GritError, match="'x'; no document has any"):
        check_fields(parse_filter("x == 2"), [{}], "INDEX")
