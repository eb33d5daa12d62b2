"""Prompts in every form that a caller may pass, and answers as text while they are generated."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.text import TextWriter, conversations, messages_of


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
    for read in (conversations, tiny_model.generate):
        with pytest.raises(GritError, match=words):
            read(prompts)


def user(text):
    return {"role": "user", "content": text}


def test_every_form_of_prompts():
    """A string or a list of messages, alone or several of either."""
    talk = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    for prompts, turns in (
        ("a", [["a"]]),
        (["a", "b"], [["a"], ["b"]]),
        (talk, [["a", "b", "c"]]),
        ([talk, "d", [user("e")]], [["a", "b", "c"], ["d"], ["e"]]),
        (iter(["a", "b"]), [["a"], ["b"]]),
        ([], []),
    ):
        assert conversations(prompts) == turns
    assert messages_of(["d", talk]) == [[user("d")], talk]
    assert messages_of(talk) == [talk]


def test_a_template_decides_about_roles_but_there_must_be_something_to_answer():
    tool = [user("a"), {"role": "tool", "content": "b"}]
    assert messages_of(tool) == [tool]
    with pytest.raises(GritError, match="^prompt 1: the last message must be the user's"):
        messages_of(["a", [user("a"), {"role": "assistant", "content": "b"}]])
    with pytest.raises(GritError, match="prompts must be.*int"):
        messages_of(5)


def passed_on(tokenizer, ids):
    """What a writer passes on with each id, and at the end."""
    heard = []
    writer = TextWriter(tokenizer, lambda number, text: heard.append(text), 3)
    pieces = []
    for token in ids:
        writer.write([token])
        pieces.append("".join(heard))
        heard.clear()
    writer.finish()
    return pieces, "".join(heard)


def test_words_are_passed_on_at_once_and_characters_when_their_bytes_are_there(tiny_tokenizer):
    ids = tiny_tokenizer.encode("river stone")
    pieces, rest = passed_on(tiny_tokenizer, ids)
    assert rest == "" and "".join(pieces) == tiny_tokenizer.decode(ids)
    assert all(pieces)
    face = tiny_tokenizer.encode("\U0001f600")[-4:]  # one token a byte
    assert tiny_tokenizer.decode(face) == "\U0001f600"
    pieces, rest = passed_on(tiny_tokenizer, [*ids, *face])
    assert pieces[-4:-1] == ["", "", ""]
    assert pieces[-1] + rest == "\U0001f600"


def test_what_was_passed_on_is_never_taken_back(tiny_tokenizer):
    """Any ids at all, bytes that are no UTF-8 among them; written in runs of any length."""
    rng = np.random.default_rng(0)
    special = {tiny_tokenizer.pad_id, tiny_tokenizer.bos_id, tiny_tokenizer.eos_id}
    known = [i for i in range(tiny_tokenizer.vocab_size) if i not in special]
    for _ in range(60):
        ids = rng.choice(known, 20).tolist()
        pieces, rest = passed_on(tiny_tokenizer, ids)
        assert "".join(pieces) + rest == tiny_tokenizer.decode(ids)
        heard = []
        writer = TextWriter(tiny_tokenizer, lambda _, text: heard.append(text), 0)  # noqa: B023
        for start in range(0, 20, 7):
            writer.write(ids[start : start + 7])
        writer.finish()
        assert "".join(heard) == tiny_tokenizer.decode(ids)


def test_special_tokens_that_are_part_of_the_text(tiny_tokenizer):
    """They are spelled where they stand; the others are left out."""
    end = tiny_tokenizer.eos_id
    ids = [*tiny_tokenizer.encode("river"), end, *tiny_tokenizer.encode("stone")]
    for kept, text in (({}, "riverstone"), ({end: "</s>"}, "river</s>stone")):
        parts: list[str] = []
        writer = TextWriter(tiny_tokenizer, lambda _, new: parts.append(new), 0, kept)
        for token in [tiny_tokenizer.bos_id, *ids]:
            writer.write([token])
        writer.finish()
        assert "".join(parts) == text
