"""Duplicates against a comparison of all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from grit_jax.data import near_duplicates as module
from grit_jax.data.near_duplicates import exact_duplicates, near_duplicates
from grit_jax.data.word_hashes import min_hash_bands, ngrams_of, words_of


def test_exact_duplicates_are_the_later_ones():
    keys = np.array([5, 3, 5, 9, 3, 5], np.uint64)
    assert exact_duplicates(keys).tolist() == [False, False, True, False, True, True]
    assert not len(exact_duplicates(np.zeros(0, np.uint64)))


def triples(words):
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


@pytest.mark.parametrize("together", [2048, 3])
def test_near_duplicates_are_those_of_all_pairs(together, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_TOGETHER", together)
    rng = random.Random(1)
    texts = []
    for number in range(60):
        words = [f"{number}w{i}" for i in range(rng.randint(40, 80))]
        texts.append(words)
        for copy in range(number % 4):  # chains of copies, each with one more word changed
            words = [*words]
            words[5 + copy] = f"new{number}{copy}"
            texts.append(words)
        texts.append([f"{number}w{i}" for i in range(12)])  # shares a beginning only
    rng.shuffle(texts)
    texts += [[""], [""]]
    least = 0.8
    # Components of the graph of all close pairs.
    label = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            a, b = triples(texts[i]), triples(texts[j])
            if len(a & b) / len(a | b) >= least and texts[i] != [""]:
                label = [label[j] if value == label[i] else value for value in label]
    expected = [value in label[:i] for i, value in enumerate(label)]
    joined = [" ".join(words) for words in texts]
    shingles = lambda rows: ngrams_of(words_of([joined[row] for row in rows]), 3, whole=True)
    bands = min_hash_bands(shingles(range(len(texts))))
    rows = np.arange(len(texts))
    near = near_duplicates(bands, rows, shingles, least)
    assert near.tolist() == expected and 80 <= sum(expected) < 120
    # Rows that are not compared are neither dropped nor a reason to drop others.
    some = rows[~near]
    assert not near_duplicates(bands, some, shingles, least).any()
