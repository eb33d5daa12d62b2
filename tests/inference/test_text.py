"""Prompts in every form that a caller may pass, and answers as text while they are generated."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a", 3], "prompt 1"),
        (
            [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
            "last message",
        ),
        ([{"role": "robot", "content": "a"}], "robot"),
        (["a", [{"role": "user"}]], "prompt 1.*content"),
        (None, "prompts must be.*NoneType"),
        (b"a", "prompts must be.*bytes"),
        (5, "prompts must be.*int"),
        ({"a"}, "prompts must be.*set"),
        ({"role": "user", "content": "a"}, "message belongs in a list"),
        ([["a"]], "prompt 0"),
        ([[]], "prompt 0"),
        ([b"a"], "prompt 0"),
        ([None], "prompt 0"),
    ],
)
def test_bad_prompts_are_named(tiny_model, prompts, words):
    with pytest.raises(GritError, match=words):
        tiny_model.generate(prompts)
