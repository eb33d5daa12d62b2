"""How long an indexed document may be: a question has to fit beside it."""

from __future__ import annotations

import pytest

from grit_jax.rag.document_length import default_max_length


@pytest.mark.parametrize(
    "context, length",
    [
        (131072, 4096),
        (4608, 4096),  # exactly as long, with 512 tokens for the question
        (4607, 4095),
        (2048, 1536),
        (2047, 2047 - 511),  # from here on a quarter of the context
        (256, 192),
        (4, 3),
        (1, 1),
    ],
)
def test_room_is_left_for_the_question(context, length):
    assert default_max_length(context) == length
