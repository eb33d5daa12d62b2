"""Hashes of words and n-grams against plain Python, and MinHash against the similarity itself."""

from __future__ import annotations

import re

import numpy as np
import pytest

from grit_jax.data.word_hashes import (
    BANDS,
    min_hash_bands,
    ngrams_of,
    sequences_of,
    similarity,
    words_of,
)

TEXTS = [
    "The quick brown fox, jumps!",
    "",
    "one",
    "THE  quick\nbrown fox jumps",
    "... --- !",
    "Größe naïve café ﬁne",
    "größe NAÏVE cafe\u0301 fine",  # other code points of the same characters
    "a1 b2 a1 b2 a1 b2",
]


def plain_words(text):
    import unicodedata

    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def test_words_are_those_of_a_regular_expression():
    words = words_of(TEXTS)
    expected = [plain_words(text) for text in TEXTS]
    assert words.counts.tolist() == list(map(len, expected))
    names = {}
    for i, text in enumerate(expected):
        for word, value in zip(text, words.of(i).tolist(), strict=True):
            assert names.setdefault(word, value) == value
    assert len(set(names.values())) == len(names)
    # Texts apart have the hashes that they have together.
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(words_of([text]).hashes, words.of(i))
    assert not len(words_of([]).ends)


def test_scripts_without_spaces_have_a_word_for_each_character():
    assert words_of(["東京は大きい", "東 京", "ab東cd", "สวัสดี", "नमस्ते दुनिया"]).counts.tolist() == [
        6,
        2,
        3,
        6,
        2,
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 13])
@pytest.mark.parametrize("whole", [False, True])
def test_ngrams_are_those_of_slices(n, whole):
    grams = ngrams_of(words_of(TEXTS), n, whole=whole)
    names = {}
    for i, text in enumerate(map(plain_words, TEXTS)):
        expected = [tuple(text[k : k + n]) for k in range(len(text) - n + 1)]
        if whole and text and not expected:
            expected = [tuple(text)]
        own = grams.of(i).tolist()
        assert len(own) == len(expected)
        for gram, value in zip(expected, own, strict=True):
            assert names.setdefault(gram, value) == value
    assert len(set(names.values())) == len(names)


def test_sequences_tell_texts_apart_by_words_and_order():
    hashes = sequences_of(words_of([*TEXTS, "two one", "one two", "one one"])).tolist()
    assert hashes[0] == hashes[3] and hashes[5] == hashes[6]
    assert hashes[1] == hashes[4] == 0
    assert len(set(hashes)) == len(hashes) - 3


def test_hashes_are_spread_evenly():
    words = words_of([f"w{number}" for number in range(50_000)]).hashes
    assert len(np.unique(words)) == 50_000
    for shift in (0, 24, 56):
        counts = np.bincount(((words >> np.uint64(shift)) & np.uint64(255)).astype(int))
        assert len(counts) == 256 and counts.min() / counts.max() > 0.6


def test_min_hash_finds_pairs_as_often_as_their_similarity_says():
    rng = np.random.default_rng(0)
    found = {}
    for kept in (18, 20, 36):  # of 40 words
        shared = []
        texts = []
        for _ in range(300):
            one = rng.integers(0, 10**9, 40)
            other = np.concatenate([one[:kept], rng.integers(0, 10**9, 40 - kept)])
            texts += [" ".join(map(str, one)), " ".join(map(str, other))]
        grams = ngrams_of(words_of(texts), 1, whole=True)
        bands = min_hash_bands(grams)
        assert bands.shape == (600, BANDS) and (bands > 0).all()
        s = similarity(grams.of(0), grams.of(1))
        assert s == kept / (80 - kept)
        shared = (bands[::2] == bands[1::2]).any(axis=1).mean()
        found[s] = shared
        assert shared == pytest.approx(1 - (1 - s**8) ** BANDS, abs=0.06)
    assert min(found.values()) < 0.02 and max(found.values()) > 0.9
    # One at a time, and in larger blocks, as together.
    np.testing.assert_array_equal(
        min_hash_bands(ngrams_of(words_of(texts[:1]), 1, whole=True))[0], bands[0]
    )
    assert not min_hash_bands(ngrams_of(words_of(["", "a"]), 3, whole=True))[0].any()


def test_similarity():
    grams = ngrams_of(words_of(["a b c d", "a b c d e", "x y z", ""]), 2)
    pairs = [(0, 0), (0, 1), (0, 2), (0, 3), (3, 3)]
    assert [similarity(grams.of(i), grams.of(j)) for i, j in pairs] == [1, 0.75, 0, 0, 0]
