"""Rows of repeated passages: what they are made of, and the file written of them."""

from __future__ import annotations

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.pydocs.repeats import repeated, write_repeats

TEXTS = [" ".join(f"{letter}{i}" for i in range(30)) for letter in "abcdefgh"]


def passage(text: str) -> tuple[list[str], int]:
    """The words that the text repeats, and how often: of the shortest period."""
    words = text.split()
    for period in range(1, len(words) + 1):
        times, rest = divmod(len(words), period)
        if not rest and words == words[:period] * times:
            return words[:period], times
    raise AssertionError(text)


def test_passages_of_documents_and_words_of_all():
    rows = [passage(text) for text in repeated([*TEXTS, "too short"], 400)]
    assert {len(words) for words, _ in rows} == set(range(2, 13))
    assert {times for _, times in rows} == set(range(4, 9))
    assert all(any(word in text.split() for text in TEXTS) for words, _ in rows for word in words)
    contiguous = [any(" ".join(words) in text for text in TEXTS) for words, _ in rows]
    assert 160 < sum(contiguous) < 240


def test_long_words_and_long_passages_are_cut():
    rows = repeated(["word" * 50 + " " + "long " * 11 + "y" * 19], 100)
    assert (
        all(len(word) <= 20 for row in rows for word in row.split()) and max(map(len, rows)) <= 241
    )


def test_a_seed_is_a_file(tmp_path):
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text("".join(json.dumps({"id": text[0], "text": text}) + "\n" for text in TEXTS))
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        assert write_repeats(corpus, tmp_path / name, 50, seed) == 50
    one, same, other = ((tmp_path / name).read_text() for name in ("one", "same", "other"))
    assert one == same != other
    assert [json.loads(line) for line in one.splitlines()] == [
        {"text": text} for text in repeated(TEXTS, 50)
    ]
    corpus.write_text('{"id": "1", "text": "few words"}\n')
    with pytest.raises(GritError, match=r"documents\.jsonl: no document has 12 words"):
        write_repeats(corpus, tmp_path / "none", 5)
    assert not (tmp_path / "none").exists()
