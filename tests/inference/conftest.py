"""Documents and prompts that the tests of generation share."""

from __future__ import annotations

import pytest

from grit_jax.inference.encoder import Encoder
from grit_jax.text.chat import GRIT
from grit_jax.types import DocumentKV


@pytest.fixture(scope="session")
def documents(tiny_config, tiny_params, tiny_tokenizer, sentences) -> list[DocumentKV]:
    encoder = Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    return encoder.encode(
        [text for text in sentences if len(text) < 80][:8], return_cache=True
    ).caches


@pytest.fixture(scope="session")
def prompts(tiny_tokenizer, sentences) -> list[list[int]]:
    """Ragged: 3 to some 50 tokens."""
    short = [text for text in sentences if len(text) < 90]
    texts = ["Amber", short[20], " ".join(short[30:33]), short[21]]
    return [[tiny_tokenizer.bos_id, *tiny_tokenizer.encode(text)] for text in texts]
