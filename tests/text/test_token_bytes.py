"""Bytes of tokens: joined they are the text, whatever the vocabulary."""

from __future__ import annotations

import pytest
from small_tokenizers import byte_level
from tokenizer_kinds import MAKERS, make

from grit_jax.text.token_bytes import TokenBytes
from grit_jax.text.tokenizer import Tokenizer

TEXT = "Amber river, na\u00efve \u2603 \U0001f600 x = [1, 23]\n    return <0x41> \u2581!"


def joined(tokenizer: Tokenizer, text: str) -> bytes:
    table = TokenBytes(tokenizer)
    ids = tokenizer.encode(text, continues=True)
    # An unknown character is a special token, which stands for nothing that was written.
    return b"".join(
        table[i] for i in ids if tokenizer.token_text(i) not in tokenizer.special_tokens
    )


def test_of_our_own_tokenizers(tiny_tokenizer):
    assert joined(tiny_tokenizer, TEXT) == TEXT.encode()
    table = TokenBytes(tiny_tokenizer)
    assert table[tiny_tokenizer.eos_id] == b"</s>" and table[10**6] == b""


def test_of_byte_level_ones():
    assert joined(byte_level(), TEXT) == TEXT.encode()


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_of_every_kind(kind, tmp_path):
    """Of text without the mark that some vocabularies write for a space; in their own normal form,
    and without the space that some put before a text."""
    tokenizer = Tokenizer.from_pretrained(make(kind, tmp_path / kind))
    text = TEXT.replace("\u2581", "").replace("<0x41>", "")
    decoded = tokenizer.decode(tokenizer.encode(text, continues=True)).encode()
    assert joined(tokenizer, text).lstrip() == decoded.lstrip()
