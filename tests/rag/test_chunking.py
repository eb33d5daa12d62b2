"""Texts in chunks: nothing is lost, nothing is too long, and borders are where a reader would put
them."""

from __future__ import annotations

import random

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.chunking import Chunking, chunks


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return tiny_model.tokenizer


@pytest.mark.parametrize("tokens, overlap", [(1, 0), (7, 3), (30, 0), (30, 15), (10_000, 50)])
def test_all_words_in_their_order(tokenizer, tokens, overlap):
    rng = random.Random(tokens)
    word = lambda: "".join(rng.choices("abcdeéßäλ漢", k=rng.randint(1, 12)))
    text = "".join(word() + rng.choice([" ", "  ", ". ", "\n", "\n\n", "\t"]) for _ in range(300))
    made = chunks(text, tokenizer, Chunking(tokens, overlap))
    if tokens > 1:  # a character may have several tokens
        assert all(len(tokenizer.encode(chunk)) <= tokens for chunk in made)
    # Each chunk is a part of the text, and they cover it without a gap.
    plain, place = "".join(text.split()), 0
    for chunk in ("".join(chunk.split()) for chunk in made):
        assert chunk
        begin = next(b for b in range(place, -1, -1) if plain.startswith(chunk, b))
        assert begin + len(chunk) > place or not overlap
        place = begin + len(chunk)
    assert place == len(plain)


def test_borders(tokenizer):
    count = lambda text: len(tokenizer.encode(text))
    first, second = "One amber river. Two quiet stones.", "Three copper engines and a harbor."
    most = count(first + "\n\n" + second) - 1
    assert chunks(f"{first}\n\n{second}", tokenizer, Chunking(most, 0)) == [first, second]
    lines = chunks(f"{first}\n{second}", tokenizer, Chunking(most, 0))
    assert lines == [first, second]
    sentences = chunks(f"{first} {second}", tokenizer, Chunking(most, 0))
    assert sentences == [first, second]
    whole = chunks(f" {first}\n\n{second} ", tokenizer, Chunking(most + 10, 0))
    assert whole == [f"{first}\n\n{second}"]


def test_an_overlap_repeats_the_end(tokenizer):
    words = [f"word{i}" for i in range(60)]
    made = chunks(" ".join(words), tokenizer, Chunking(40, 12))
    for left, right in zip(made, made[1:]):
        repeated = [word for word in left.split() if word in right.split()]
        assert repeated and left.endswith(" ".join(repeated))
        assert right.startswith(" ".join(repeated))


def test_nothing_to_divide(tokenizer):
    assert chunks("", tokenizer, Chunking()) == chunks(" \n ", tokenizer, Chunking()) == []


@pytest.mark.parametrize("tokens, overlap", [(0, 0), (10, 6), (10, -1)])
def test_numbers_out_of_range(tokens, overlap):
    with pytest.raises(GritError, match="of (a chunk|chunks): expected"):
        Chunking(tokens, overlap)
