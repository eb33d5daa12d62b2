"""Token ids of prompt parts, with a vocabulary in which line breaks merge: whose ids a token is."""

from __future__ import annotations

import pytest
import tokenizers
from small_tokenizers import byte_level
from tokenizers import models

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT, PromptPart
from grit_jax.text.prompt_encoding import PartEncoder, unicode_text

PIECES = ["a", "b", ".", "\n", ".\n", "\nb", "<tag>"]
IDS = {piece: number for number, piece in enumerate(PIECES)}


@pytest.fixture(scope="module")
def encoder():
    """Of three characters and a line break, which merges with `.` before it and `b` after it."""
    vocabulary = {piece: number for piece, number in IDS.items() if piece != "<tag>"}
    plain, template = (
        tokenizers.Tokenizer(models.BPE(vocabulary, [(".", "\n"), ("\n", "b")])) for _ in "12"
    )
    template.add_special_tokens(["<tag>"])
    encode = lambda texts: [plain.encode(text).ids for text in texts]
    return PartEncoder(plain, template, encode)


def template(text):
    return PromptPart(text, is_template=True)


def document(text):
    return PromptPart(text, is_document=True)


def answer(text):
    return PromptPart(text, is_answer=True)


@pytest.mark.parametrize(
    "parts, expected",
    [
        # A token that crosses a border belongs to the part in which it begins.
        (
            [PromptPart("a."), template("\n<tag>"), PromptPart("b")],
            [["a", ".\n"], ["<tag>"], ["b"]],
        ),
        ([template("\n"), PromptPart("b"), template(".")], [["\nb"], [], ["."]]),
        (
            [PromptPart("a."), template("\n"), PromptPart("b"), template(".")],
            [["a", ".\n"], [], ["b"], ["."]],
        ),
        # None crosses into a document or an answer, out of one, or into the text that ends a prompt.
        ([document("a."), template("\n")], [["a", "."], ["\n"]]),
        ([template("\n"), document("b"), template(".")], [["\n"], ["b"], ["."]]),
        ([PromptPart("a."), template("\n"), answer("b")], [["a", ".\n"], [], ["b"]]),
        ([answer("a."), template("\n")], [["a", "."], ["\n"]]),
        ([template("a\n"), PromptPart("b")], [["a", "\n"], ["b"]]),
        # A tag is one in a template, and text where a user types it; nothing merges with it.
        (
            [template("a<tag>\n"), PromptPart("b"), template("a")],
            [["a", "<tag>", "\nb"], [], ["a"]],
        ),
        ([template("."), template("<tag>"), template("\nb")], [["."], ["<tag>"], ["\nb"]]),
        ([PromptPart(""), template(""), PromptPart("b")], [[], [], ["b"]]),
        ([], []),
    ],
)
def test_whose_ids_a_token_is(encoder, parts, expected):
    found = encoder.encode([parts])
    assert [[PIECES[i] for i in ids] for ids in found[0]] == expected
    # Prompts that are encoded together are encoded as alone.
    other = [PromptPart("b."), template("\n"), PromptPart("a")]
    assert encoder.encode([other, parts, other])[1] == found[0]


def test_together_the_parts_are_the_whole_string():
    """Wherever nothing forbids that a token crosses a border."""
    tokenizer = byte_level()
    for turns in (["hello world?", "because so"], ["why. ", " b", "\n\nso", "c"]):
        parts = [PromptPart(part.text) for part in GRIT.render_turns(turns)]
        parts.append(PromptPart("", is_template=True))  # so that no text ends the prompt
        whole = tokenizer._plain.encode(
            "".join(part.text for part in parts), add_special_tokens=False
        )
        [ids] = tokenizer.encode_parts([parts])
        assert [i for part in ids for i in part] == whole.ids


def test_what_is_no_unicode_text():
    assert unicode_text("é") == "é"
    with pytest.raises(GritError, match="a text is not Unicode text .*broken"):
        unicode_text("broken \ud800")
    with pytest.raises(GritError, match="text number 3 is not Unicode text but NoneType: None"):
        unicode_text(None, 3)
