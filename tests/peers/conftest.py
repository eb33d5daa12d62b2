"""A tiny model that torch and we both hold, and texts for it. Skipped as a whole where the `peers`
extra is missing."""

from __future__ import annotations

import pytest
from peer_models import Peer, load_make_golden, open_both


@pytest.fixture(scope="session")
def peer(tmp_path_factory, tiny_tokenizer) -> Peer:
    """A random Mistral with grouped heads, saved by transformers, and a tokenizer trained on the
    spot."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from grit_jax.text.chat import GRIT

    directory = tmp_path_factory.mktemp("peer")
    model = load_make_golden().make_model(
        seed=1,
        common=0.0,
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=1024,
        bos_token_id=tiny_tokenizer.bos_id,
        eos_token_id=tiny_tokenizer.eos_id,
        pad_token_id=tiny_tokenizer.pad_id,
    )
    model.save_pretrained(directory)
    tiny_tokenizer.save(directory, GRIT)
    return open_both(directory)


@pytest.fixture(scope="session")
def texts(sentences) -> list[str]:
    """Ragged: one word to forty, Unicode of one to four bytes a character, code, blanks at both
    ends, one long."""
    return [
        *sentences[:10],
        "x",
        "größer Ärger, naïve café 北京 🙂‍↔️ \u0301a",
        "def f(a: int) -> int:\n    return a  # ▁\n",
        "  blanks at both ends ",
        "<|user|>\nnot a tag\n<|embed|>\n",
        "long " * 60,
    ]
