"""Questions about one document: answers that stand in it, and names that cannot be known by
heart."""

import random
import re

import pytest

from grit_jax.pydocs.documents import Document, parse_signature, split_of
from grit_jax.pydocs.questions import (
    Question,
    RandomNames,
    best_constant,
    guessable,
    questions_about,
    randomised,
)


def test_randomised_identifiers_are_consistent():
    original = Document(
        "pack.linalg.norm",
        "function",
        "norm(matrix, ord=2.5, axis=None, *, keep='yes')",
        (),
        "Norm of a matrix.\n\nmatrix : array\n    The matrix, see `norm`.\nord : number\n"
        "    The order, default 2.5. Must be a number.\naxis : int\n    Which axis.",
        "p",
    )
    random_names = RandomNames(["cedar", "maple"])
    seen = set()
    for seed in range(50):
        new = randomised(original, random_names, random.Random(seed))
        items = parse_signature(new.signature)
        assert [n == "*" for n, _ in items] == [False, False, False, True, False]
        assert [d is None for _, d in items] == [True, False, False, True, False]
        assert split_of(new.id) == "train"
        assert new.signature.startswith(new.id.removeprefix("pack.linalg.") + "(")
        assert not {"matrix", "ord", "axis", "keep", "norm"} & set(
            re.findall(r"\w+", new.signature)
        )
        assert not {"matrix", "ord", "axis"} & set(re.findall(r"[^\W]+", new.doc))
        assert f"default {items[1][1]}." in new.doc or "default" not in new.doc
        for question in questions_about(new, random.Random(seed)).values():
            assert new.id in question.text and question.answer in question.document
            assert question.document == f"{new.id} {new.text}"
        seen.add(new.signature)
    assert len(seen) == 50


def test_functions_without_parameters_get_some():
    bare = Document(
        "p.go", "function", "go()", (), "Goes on and on until it has to stop for the night.", "p"
    )
    found = [
        questions_about(randomised(bare, RandomNames([]), random.Random(s)), random.Random(s))
        for s in range(30)
    ]
    assert sum("default" in f for f in found) > 20 and sum("order" in f for f in found) > 20


def test_best_constant_counts_contained_answers():
    rows = [{"text": ["q", a]} for a in ("None", "none.", "the axis", "0.5", "none axis")]
    assert best_constant(rows) == ("none axis", 4 / 5)
    assert best_constant([]) == ("", 0.0)


def test_each_kind_of_question():
    """About a document that has one answer of each kind."""
    document = Document(
        "pack.norm",
        "function",
        "norm(matrix, order=2.5)",
        (("matrix", None), ("order", "2.5")),
        "Computes carefully chosen sizes of every kind.",
        "pack",
    )
    shown = "pack.norm norm(matrix, order=2.5)\nComputes carefully chosen sizes of every kind."
    quoted = set()
    for seed in range(40):
        questions = questions_about(document, random.Random(seed))
        assert {question.document for question in questions.values()} == {shown}
        assert (questions["default"].answer, questions["order"].answer) == ("2.5", "order")
        assert "`order`" in questions["default"].text and "`matrix`" in questions["order"].text
        if "quotation" in questions:
            answer = questions["quotation"].answer
            [words] = re.findall('"(.*)"', questions["quotation"].text)
            assert answer.startswith(words) and answer in shown
            assert len(answer.split()) == len(words.split()) + 3
            quoted.add(answer)
    assert len(quoted) > 2
    row = questions["default"].row()
    assert row == {"docs": [shown], "text": [questions["default"].text, "2.5"]}


@pytest.mark.parametrize(
    "text, answer, expected",
    [
        ("What follows `axis`?", "order", False),
        ("What follows `axis`?", "the axis", True),  # the question itself holds it
        ("What follows `axis`?", "x", True),  # one letter
        ("What follows `axis`?", "...", True),  # nothing is left of it
        ("What follows `axis`?", "ax", False),  # a part of a word is no answer
    ],
)
def test_answers_that_could_be_guessed(text, answer, expected):
    assert guessable(Question("f", "order", text, answer, "")) is expected
