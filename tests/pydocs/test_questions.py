"""Questions about one document: answers that stand in it, and names that cannot be known by
heart."""

import dataclasses
import random
import re

import pytest

from grit_jax.data.formats import titled
from grit_jax.pydocs.documents import Document, parse_signature, split_of
from grit_jax.pydocs.questions import (
    PHRASINGS,
    SENTENCES,
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
            assert new.id in question.text
            assert question.answer in " ".join(question.document.split())
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
    assert sum("default" in f for f in found) > 20


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
        "Computes carefully chosen sizes of every kind.\n\n.. versionadded:: 1.2\n"
        ".. deprecated:: 1.4\n   Use `pack.size` instead.\n\nParameters\n----------\n"
        "matrix : array_like\n    What.\n\nReturns\n-------\nsize : float\n    The size found.\n"
        "\nRaises\n------\nValueError\n    If it is\n    empty.",
        "pack",
    )
    shown = titled(document.id, document.text)
    expected = {
        "default": ("2.5", "The default of `order` is `2.5`."),
        "type": ("array_like", "`matrix` is of type array_like."),
        "returns": ("The size found", "It returns the size found."),
        "raised when": ("If it is empty", "It raises `ValueError` if it is empty."),
        "raised what": ("ValueError", "It raises `ValueError`."),
        "added": ("1.2", "Since version 1.2."),
        "deprecated": ("1.4", "It is deprecated since version 1.4."),
        "instead": ("pack.size", "Use `pack.size` instead."),
        "purpose": (
            "Computes carefully chosen sizes of every kind",
            "Computes carefully chosen sizes of every kind.",
        ),
    }
    assert expected.keys() == PHRASINGS.keys() == SENTENCES.keys()
    asked = set()
    for seed in range(20):
        questions = questions_about(document, random.Random(seed))
        assert {kind: (q.answer, q.sentence) for kind, q in questions.items()} == expected
        assert {question.document for question in questions.values()} == {shown}
        assert all("`pack.norm`" in question.text for question in questions.values())
        asked |= {question.text for question in questions.values()}
    assert len(asked) == sum(map(len, PHRASINGS.values()))
    question = questions["raised what"]
    assert question.text.endswith(("if it is empty?",))
    assert question.row() == {"docs": [shown], "text": [question.text, "ValueError"]}
    assert question.row(sentence=True) == {
        "docs": [shown],
        "text": [question.text, "It raises `ValueError`."],
        "answer": "ValueError",
    }


def test_only_what_is_shown_is_asked():
    """A long document is cut before its last sections."""
    doc = "Does something useful here.\n\n" + "Words and words. " * 40
    doc += "\n\nReturns\n-------\nint\n    The number of them."
    document = Document("p.f", "function", "", (), doc, "p")
    assert set(questions_about(document, random.Random(0))) == {"purpose"}
    longer = dataclasses.replace(document, max_characters=1000)
    assert set(questions_about(longer, random.Random(0))) == {"purpose", "returns"}
    # Of a parameter that is not shown, nothing is asked, though its type occurs in the text.
    hidden = doc.partition("Returns")[0] + "Parameters\n----------\nlast : words and words\n    It."
    document = dataclasses.replace(
        document, doc=hidden.replace("Does", "Like words and words, does")
    )
    assert set(questions_about(document, random.Random(0))) == {"purpose"}


def test_what_is_not_recommended_names_something_else():
    for doc in (
        "Deprecated. Use `f` instead.",  # itself
        "Deprecated. Use `axis` instead.",  # a parameter of it
        "Use `p.g` instead.",  # not said to be deprecated
    ):
        document = Document("p.f", "function", "f(axis)", (("axis", None),), doc, "p")
        assert "instead" not in questions_about(document, random.Random(0))


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
