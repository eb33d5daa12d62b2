"""Scores of answers by SQuAD's rules."""

from __future__ import annotations

import re
import string

import numpy as np
import pytest

from grit_jax.text.answer_matching import normalise_answer, score_answer


def squad_normalise(s: str) -> str:
    """SQuAD v1.1's evaluate script, word for word."""

    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def test_normalisation_is_squads():
    rng = np.random.default_rng(0)
    letters = list("aA tThHeE nN.,!-_'\"()\n\té²ß   ")
    texts = ["".join(rng.choice(letters, 20)) for _ in range(500)]
    for text in [
        *texts,
        "",
        "The",
        "the an a",
        "A-the B",
        "a.b the.c",
        "theatre an anthem",
        "NONE",
        "x\u00a0y",
    ]:
        assert normalise_answer(text) == squad_normalise(text)


@pytest.mark.parametrize(
    "answer, gold, match, exact, f1",
    [
        ("The  River!", "river", 1, 1, 1.0),
        ("It is the quiet river.", "quiet river", 1, 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("river", "quiet river", 0, 0, 2 / 3),
        ("rivers", "river", 1, 0, 0.0),  # contained as characters, as in the original
        ("", "river", 0, 0, 0.0),
        ("river", "", 1, 0, 0.0),
        ("the", "a", 1, 1, 1.0),
        (
            "red red blue",
            "red blue blue",
            0,
            0,
            2 / 3,
        ),  # as bags of words: two in common of three each
    ],
)
def test_scores_of_an_answer_by_hand(answer, gold, match, exact, f1):
    found = score_answer(answer, gold)
    assert (found.match, found.exact_match) == (match, exact) and found.f1 == pytest.approx(f1)
