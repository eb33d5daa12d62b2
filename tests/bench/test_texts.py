"""Texts of an exact number of tokens, whatever the tokenizer."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from grit_jax.bench.texts import TextMaker
from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoder
from grit_jax.text.chat import GRIT
from grit_jax.text.tokenizer import Tokenizer

KINDS = sorted(
    path.name
    for path in (Path(__file__).parent.parent / "text" / "golden").iterdir()
    if path.is_dir()
)


def model_with(tokenizer: Tokenizer, config):
    """What a maker of texts needs of a model."""
    encoder = Encoder(config, {}, tokenizer, tokenizer.format(GRIT))
    return types.SimpleNamespace(tokenizer=tokenizer, encoder=encoder, config=config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_tokens_asked_for(kind, tiny_config):
    tokenizer = Tokenizer.from_pretrained(Path(__file__).parent.parent / "text" / "golden" / kind)
    maker = TextMaker(model_with(tokenizer, tiny_config))
    for tokens in (1, 2, 5, 63, 700):
        text = maker.text(tokens)
        assert text.strip() == text and len(tokenizer.encode(text, continues=True)) == tokens


def test_texts_follow_from_seed_and_name(tiny_model):
    text = TextMaker(tiny_model, 3).text(50, "a")
    assert TextMaker(tiny_model, 3).text(50, "a") == text
    assert (
        len({text, TextMaker(tiny_model, 4).text(50, "a"), TextMaker(tiny_model, 3).text(50, "b")})
        == 3
    )
    assert len(set(text.split())) > 5


def test_a_tokenizer_without_words(tiny_config, tiny_tokenizer, monkeypatch):
    maker = TextMaker(model_with(tiny_tokenizer, tiny_config))
    monkeypatch.setattr(tiny_tokenizer, "decode", lambda ids: "--")
    with pytest.raises(GritError, match="no words that are one token"):
        maker.text(3)
