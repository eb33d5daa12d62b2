"""Tokenized texts: what is sent of them to other hosts, and what can be read off them."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText, max_targets


@pytest.mark.parametrize(
    "text",
    [
        PromptedText([3, 1, 4], 2),
        PromptedText([], 0),
        TokenText([5, 6, 7], [False, True, False]),
        TokenText([5, 6], [False, False]),
        TokenCached([[1, 2], [], [3]], TokenText([8, 9], [False, True]), 1),
        TokenCached([], TokenText([8], [True])),
        TokenCached(
            [[1, 2], [3]],
            TokenText([8, 9], [False, True]),
            1,
            TokenText([4, 3, 1, 2, 9], [False] * 4 + [True]),
        ),
    ],
)
def test_a_text_travels_as_header_and_content(text):
    """A placeholder has the same lengths and the same header; with its content it is the text."""
    placeholder = type(text).placeholder(np.asarray(text.header(), "<i4"))
    assert placeholder.header() == text.header()
    arrived = placeholder.with_content(np.asarray(text.content(), "<i4"))
    if isinstance(text, PromptedText):
        assert arrived.key == text.key
        arrived = PromptedText(arrived.ids, arrived.prompt_length)
    assert arrived == text


def test_what_packing_needs_is_known_without_the_ids():
    """Equal texts are recognised on a host that has neither of them."""
    texts = [PromptedText([3, 1, 4], 2), PromptedText([3, 1, 4], 2), PromptedText([3, 1, 5], 2)]
    keys = [PromptedText.placeholder(np.asarray(t.header(), "<i4")).key for t in texts]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 16
    cached = TokenCached([[7] * 5, [8]], TokenText([1, 2, 3], [False, False, True]), 1)
    placeholder = TokenCached.placeholder(np.asarray(cached.header(), "<i4"))
    assert [len(ids) for ids in placeholder.cached_texts] == [5, 1]
    assert (len(placeholder.text.ids), placeholder.text.first_target) == (3, 2)


def test_the_first_target():
    assert TokenText([5, 6, 7], [False, True, False]).first_target == 1
    assert TokenText([5, 6], np.array([False, True])).first_target == 1
    assert TokenText([5, 6], [False, False]).first_target == 2


def test_the_most_targets_of_a_row_are_known_without_the_ids():
    """From the first target on, in multiples of 32; never fewer than there are."""
    texts = [
        TokenText([1] * 30, [False] * 10 + [True] * 20),
        TokenText([1] * 20, [False] * 6 + [True, False] * 7),
        TokenText([1] * 90, [False] * 90),
    ]
    places = [TokenText.placeholder(np.asarray(text.header(), "<i4")) for text in texts]
    for given in (texts, places):
        assert max_targets(given, np.array([0, 1, 1])) == 32
        assert max_targets(given, np.array([2, 2, 0])) == 64  # 20 and 14
        assert max_targets(given, np.array([0, 1, 1]), least=96) == 96
